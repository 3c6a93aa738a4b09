_base_ = '../_base_/students/dab-detr_r18_8xb2-50e_coco.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dab_detr/dab-detr_r50_8xb2-50e_coco/dab-detr_r50_8xb2-50e_coco_20221122_120837-c1035c8c.pth',
    ),
    distill=dict(
        kd_detr=dict(
            queries=dict(random=300),
            loss=dict(type='mmkd_plugin.SharedQueriesLoss', tau=10),
        ),
    ),
)
