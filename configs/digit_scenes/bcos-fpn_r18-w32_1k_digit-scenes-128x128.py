_base_ = [
    '../_base_/models/bcos-fpn_r18-w32_digit-scenes.py',
    '../_base_/datasets/digit_scenes_seg.py',
    '../_base_/schedules/schedule_1k_digit-scenes.py',
    '../_base_/runtime_digit-scenes.py',
]
default_scope = 'mmseg'
# Filters count by their direction alone, so that a step has to be large to turn them. Of 0.002 (the
# schedule's own), 0.005, 0.01, 0.02, 0.04 and 0.08 this one was best for the student.
optim_wrapper = dict(optimizer=dict(lr=0.02))
