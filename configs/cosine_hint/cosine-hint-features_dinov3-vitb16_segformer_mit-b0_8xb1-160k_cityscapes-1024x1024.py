_base_ = '../_base_/pairs/dinov3-vitb16_segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            student_tap='backbone[2]',
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=1),
        ),
    ),
)
