_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        factor_transfer=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.Translator'),
            teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
            loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=dict(auto=0.5)),
        ),
    ),
)

# Settings of the stage before the student: tools/train.py with this config and --paraphraser.
paraphraser = dict(train_cfg=dict(max_iters=125))
