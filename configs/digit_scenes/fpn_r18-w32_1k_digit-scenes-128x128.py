_base_ = [
    '../_base_/models/fpn_r18-w32_digit-scenes.py',
    '../_base_/datasets/digit_scenes_seg.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmseg'
