_base_ = [
    '../_base_/models/gfl_r18-w32_fpn_digit-scenes.py',
    '../_base_/datasets/digit_scenes_det.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmdet'
train_dataloader = dict(batch_size=12, sampler=dict(_delete_=True, type='InfiniteSampler'))
