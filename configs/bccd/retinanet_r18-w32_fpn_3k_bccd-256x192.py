_base_ = [
    '../_base_/models/retinanet_r18-w32_fpn_bccd.py',
    '../_base_/datasets/bccd-256x192.py',
    '../_base_/schedules/schedule_3k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmdet'
