# The backbone learns from the last two blocks alone; docs/foundation.md says what comes next.
_base_ = '../_base_/pairs/dinov3-vitb16_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    teacher=dict(config=dict(blocks=[-2, -1])),
    distill=dict(
        hint=dict(
            student_tap=['backbone[3]', 'backbone[3]'],
            teacher_tap=['maps[0]', 'maps[1]'],
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=0.5),
        ),
    ),
    task=dict(loss_weight=0),
)
train_cfg = dict(val_interval=80000)  # its head learns nothing
