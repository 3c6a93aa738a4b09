_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

# The self-teacher learns alone at first; the terms grow from a quarter to half of the run.
schedule = dict(start=20000, ramp=20000, curve='exp')
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='mmkd_plugin.SelfTeacher',
        tap='backbone',
        # the last three stages have stride 8: width=2 would keep 1.7 GB per crop instead of 0.9
        neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=2),
    ),
    distill=dict(
        features=dict(
            student_tap='backbone',
            teacher_tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=1e4),
            schedule=schedule,
        ),
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
            schedule=schedule,
        ),
    ),
)
