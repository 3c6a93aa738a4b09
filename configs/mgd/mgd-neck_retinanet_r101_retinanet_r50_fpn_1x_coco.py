_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    init_student_from_teacher=['neck', 'bbox_head'],
    distill=dict(
        mgd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.MaskedGenerationLoss', mask_ratio=0.65, loss_weight=2e-5),
        ),
    ),
)
