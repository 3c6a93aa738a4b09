_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'rpn_head', 'roi_head'],
    distill=dict(
        fgd=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(
                type='mmkd_plugin.FocalGlobalLoss', alpha=5e-5, beta=2.5e-5, gamma=5e-5, lam=5e-7
            ),
        ),
    ),
)
