_base_ = '../_base_/pairs/dinov3-vitb16_retinanet_r18_fpn_1x_coco.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            student_tap='neck[1]',
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=1),
        ),
    ),
)
