# A narrower MaskFormer, from scratch.
_base_ = './teacher.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
)
load_from = None
