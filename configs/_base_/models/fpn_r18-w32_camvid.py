# Semantic FPN on a ResNet-18 of half the usual width, trained from scratch on CamVid.
_base_ = './fpn_r18-w32_digit-scenes.py'

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(strides=(1, 2, 2, 2)),
    decode_head=dict(feature_strides=[4, 8, 16, 32]),
)
