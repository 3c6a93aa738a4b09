_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# The self-teacher learns alone at first; the terms grow from a quarter to half of the run.
schedule = dict(start=3, ramp=3, curve='exp', by_epoch=True)
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='mmkd_plugin.SelfTeacher',
        tap='neck',
        neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=2),
    ),
    distill=dict(
        features=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=200),
            schedule=schedule,
        ),
        logits=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, sigmoid=True, loss_weight=1),
            schedule=schedule,
        ),
    ),
)
