_base_ = [
    '../_base_/models/retinanet_r18-w32_fpn_bccd.py',
    '../_base_/datasets/bccd-256x192.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmdet'
model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
train_cfg = dict(val_interval=250)
