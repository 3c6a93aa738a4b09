_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        gram=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(type='mmkd_plugin.GramLoss', loss_weight=dict(auto=0.5)),
        ),
    ),
)
