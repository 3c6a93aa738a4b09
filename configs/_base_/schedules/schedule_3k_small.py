# Training from scratch in about 20 minutes on one CPU core.
_base_ = './schedule_1k_small.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, begin=0, end=250, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=250, end=3000, eta_min=0, by_epoch=False),
]
train_cfg = dict(max_iters=3000, val_interval=500)
