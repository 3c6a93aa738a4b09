_base_ = [
    '../_base_/models/fpn_r18-w32_camvid.py',
    '../_base_/datasets/camvid-240x180.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmseg'
model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    decode_head=dict(in_channels=[32, 32, 32, 32], channels=32),
)
train_cfg = dict(val_interval=250)
