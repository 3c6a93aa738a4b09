_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        review=dict(
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=256),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight=1),
        ),
    ),
)
