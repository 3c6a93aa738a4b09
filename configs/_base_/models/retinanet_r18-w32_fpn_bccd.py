# RetinaNet on a ResNet-18 of half the usual width, trained from scratch on BCCD.
_base_ = './retinanet_r18-w32_fpn_digit-scenes.py'

model = dict(
    bbox_head=dict(
        num_classes=3,
        anchor_generator=dict(octave_base_scale=2),  # platelets are small
    ),
)
