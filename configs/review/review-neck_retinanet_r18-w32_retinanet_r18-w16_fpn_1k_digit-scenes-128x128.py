_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        review=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=64),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight=dict(auto=12.5)),
        ),
    ),
)
