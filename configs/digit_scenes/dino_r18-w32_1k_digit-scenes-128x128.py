_base_ = [
    '../_base_/models/dino_r18-w32_digit-scenes.py',
    '../_base_/datasets/digit_scenes_det.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmdet'
train_dataloader = dict(batch_size=12, sampler=dict(_delete_=True, type='InfiniteSampler'))
optim_wrapper = dict(
    optimizer=dict(lr=0.0005, weight_decay=0.0001), clip_grad=dict(max_norm=1, norm_type=2)
)
