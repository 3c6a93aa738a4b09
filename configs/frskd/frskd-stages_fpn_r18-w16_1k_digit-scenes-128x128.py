_base_ = '../digit_scenes/fpn_r18-w16_1k_digit-scenes-128x128.py'

# The self-teacher learns alone at first; the terms grow from a quarter to half of the run.
schedule = dict(start=250, ramp=250, curve='exp')
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='mmkd_plugin.SelfTeacher',
        tap='backbone',
        neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=2, depth=2),
    ),
    distill=dict(
        features=dict(
            student_tap='backbone',
            teacher_tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=50),
            schedule=schedule,
        ),
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
            schedule=schedule,
        ),
    ),
)
