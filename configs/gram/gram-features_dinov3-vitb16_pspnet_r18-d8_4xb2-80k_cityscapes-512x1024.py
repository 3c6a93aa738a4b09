_base_ = '../_base_/pairs/dinov3-vitb16_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        gram=dict(
            student_tap='backbone[3]',
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.GramLoss', loss_weight=10),
        ),
    ),
)
