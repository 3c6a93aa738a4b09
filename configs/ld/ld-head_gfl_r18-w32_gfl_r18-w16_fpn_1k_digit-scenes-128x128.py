_base_ = '../_base_/pairs/gfl_r18-w32_gfl_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='mmkd_plugin.BoxDistributionLoss', loss_weight=dict(auto=2.5)),
        ),
    ),
)
