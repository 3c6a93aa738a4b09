_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        distance=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.RKDDistanceLoss', embed='pool', gather=True, loss_weight=25
            ),
        ),
        angle=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(type='mmkd_plugin.RKDAngleLoss', embed='pool', gather=True, loss_weight=50),
        ),
    ),
)
