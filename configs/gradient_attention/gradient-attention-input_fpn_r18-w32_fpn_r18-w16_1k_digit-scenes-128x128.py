_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        gradient_attention=dict(
            tap='backbone@input',
            loss=dict(type='mmkd_plugin.GradientAttentionLoss', loss_weight=2.5),
        ),
    ),
)
