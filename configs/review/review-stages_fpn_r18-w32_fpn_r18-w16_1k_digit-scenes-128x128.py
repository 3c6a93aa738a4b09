_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        review=dict(
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=64),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight=dict(auto=2.5)),
        ),
    ),
)
