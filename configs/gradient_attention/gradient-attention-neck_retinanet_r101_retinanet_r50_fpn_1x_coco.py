_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        gradient_attention=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.GradientAttentionLoss', loss_weight=100),
        ),
    ),
)
