_base_ = [
    '../_base_/models/bcos-fpn_r18-w32_digit-scenes.py',
    '../_base_/datasets/digit_scenes_seg.py',
    '../_base_/schedules/schedule_1k_digit-scenes.py',
    '../_base_/runtime_digit-scenes.py',
]
default_scope = 'mmseg'
