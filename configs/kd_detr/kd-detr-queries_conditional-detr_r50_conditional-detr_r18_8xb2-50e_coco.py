_base_ = '../_base_/students/conditional-detr_r18_8xb2-50e_coco.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/conditional_detr/conditional-detr_r50_8xb2-50e_coco/conditional-detr_r50_8xb2-50e_coco_20221121_180202-c83a1dc0.pth',
    ),
    distill=dict(
        kd_detr=dict(
            queries=dict(random=300),
            loss=dict(type='mmkd_plugin.SharedQueriesLoss', tau=10),
        ),
    ),
)
