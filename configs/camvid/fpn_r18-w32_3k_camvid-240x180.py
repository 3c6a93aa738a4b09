_base_ = [
    '../_base_/models/fpn_r18-w32_camvid.py',
    '../_base_/datasets/camvid-240x180.py',
    '../_base_/schedules/schedule_3k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmseg'
