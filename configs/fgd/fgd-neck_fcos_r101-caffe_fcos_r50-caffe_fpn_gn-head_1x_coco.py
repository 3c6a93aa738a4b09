_base_ = '../_base_/pairs/fcos_r101-caffe_fcos_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'bbox_head'],
    distill=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.FocalGlobalLoss',
                temperature=0.8,
                alpha=1.6e-3,
                beta=8e-4,
                gamma=8e-4,
                lam=8e-6,
            ),
        ),
    ),
)
