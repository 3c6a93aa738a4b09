# The model of RetinaNet with the head of GFL, which gives a distribution for each side of a box.
_base_ = 'retinanet_r18-w32_fpn_digit-scenes.py'

model = dict(
    type='GFL',
    bbox_head=dict(
        type='GFLHead',
        anchor_generator=dict(scales_per_octave=1, ratios=[1.0]),
        loss_cls=dict(
            _delete_=True, type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
        ),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_max=16,
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9), sampler=None),
)
