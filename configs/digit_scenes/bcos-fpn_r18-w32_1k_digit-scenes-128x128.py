_base_ = [
    '../_base_/models/bcos-fpn_r18-w32_digit-scenes.py',
    '../_base_/datasets/digit_scenes_seg.py',
    '../_base_/schedules/schedule_1k_small.py',
    '../_base_/runtime_small.py',
]
default_scope = 'mmseg'
# Only the direction of a filter counts, so the steps have to be large. Of 0.002 (in the schedule),
# 0.005, 0.01, 0.02, 0.04 and 0.08, this learning rate was best for the student.
optim_wrapper = dict(optimizer=dict(lr=0.02))
