# A teacher whose weights, as float16, are small enough for the wheel; `mmkd demo` teaches with it.
_base_ = './fpn_r18-w32_1k_digit-scenes-128x128.py'

model = dict(
    backbone=dict(stem_channels=20, base_channels=20),
    neck=dict(in_channels=[20, 40, 80, 160], out_channels=40),
    decode_head=dict(in_channels=[40, 40, 40, 40], channels=40),
)
train_cfg = dict(val_interval=1000)
