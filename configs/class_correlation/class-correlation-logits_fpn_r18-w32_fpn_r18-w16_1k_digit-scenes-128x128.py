_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        class_correlation=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ClassCorrelationLoss', tau=1, loss_weight=dict(auto=2.5)),
        ),
    ),
)
