_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        gradient_attention=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.GradientAttentionLoss', loss_weight=dict(auto=0.5)),
        ),
    ),
)
