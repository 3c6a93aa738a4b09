_base_ = './dino_r18-w32_1k_digit-scenes-128x128.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    neck=dict(in_channels=[32, 64, 128]),
)
