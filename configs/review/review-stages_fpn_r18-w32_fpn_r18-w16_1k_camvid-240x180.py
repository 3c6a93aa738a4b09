_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        review=dict(
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=64),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight='auto'),
        ),
    ),
)
