_base_ = '../_base_/pairs/reppoints-moment_r101_reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'bbox_head'],
    distill=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.FocalGlobalLoss', alpha=1.6e-3, beta=8e-4, gamma=8e-4, lam=8e-6
            ),
        ),
    ),
)
