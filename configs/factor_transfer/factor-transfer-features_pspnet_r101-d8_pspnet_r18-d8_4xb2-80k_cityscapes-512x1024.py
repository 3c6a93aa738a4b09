_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        factor_transfer=dict(
            tap='decode_head.bottleneck',
            connector=dict(type='mmkd_plugin.Translator'),
            teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
            loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=500),
        ),
    ),
)

# Settings of the stage before the student: tools/train.py with this config and --paraphraser.
paraphraser = dict(train_cfg=dict(max_iters=10000))
