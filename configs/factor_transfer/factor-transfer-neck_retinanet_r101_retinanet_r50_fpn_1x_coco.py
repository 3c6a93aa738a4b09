_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        factor_transfer=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.Translator'),
            teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
            loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=500),
        ),
    ),
)

# Settings of the stage before the student: tools/train.py with this config and --paraphraser.
paraphraser = dict(train_cfg=dict(max_epochs=1))
