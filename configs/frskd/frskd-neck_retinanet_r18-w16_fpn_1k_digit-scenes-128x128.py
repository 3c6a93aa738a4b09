_base_ = '../digit_scenes/retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

# The self-teacher learns alone at first; the terms grow from a quarter to half of the run.
schedule = dict(start=250, ramp=250, curve='exp')
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='mmkd_plugin.SelfTeacher',
        tap='neck',
        neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=2),
        loss_weight=0.25,  # a weight of 1 holds the student back in such a short run
    ),
    distill=dict(
        features=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=50),
            schedule=schedule,
        ),
        logits=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, sigmoid=True, loss_weight=0.1),
            schedule=schedule,
        ),
    ),
)
