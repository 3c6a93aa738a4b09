# The backbone learns from the foundation model alone; docs/foundation.md says what comes next.
_base_ = '../_base_/pairs/dinov3-vitb16_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            student_tap='backbone[3]',
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=1),
        ),
    ),
    task=dict(loss_weight=0),
)
train_cfg = dict(val_interval=80000)  # its head learns nothing
