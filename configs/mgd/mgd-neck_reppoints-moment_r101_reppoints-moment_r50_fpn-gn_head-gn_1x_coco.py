_base_ = '../_base_/pairs/reppoints-moment_r101_reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'bbox_head'],
    distill=dict(
        mgd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.MaskedGenerationLoss', mask_ratio=0.65, loss_weight=2e-5),
        ),
    ),
)
