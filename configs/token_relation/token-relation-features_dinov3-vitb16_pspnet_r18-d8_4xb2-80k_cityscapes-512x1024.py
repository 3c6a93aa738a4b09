_base_ = '../_base_/pairs/dinov3-vitb16_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        token_relation=dict(
            student_tap='backbone[3]',
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.TokenRelationLoss', queue=1024, loss_weight=1),
        ),
    ),
)
