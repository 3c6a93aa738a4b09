_base_ = '../_base_/pairs/gfl_r101_gfl_r50_fpn_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'bbox_head'],
    distill=dict(
        fgd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.FocalGlobalLoss'),
        ),
    ),
)
