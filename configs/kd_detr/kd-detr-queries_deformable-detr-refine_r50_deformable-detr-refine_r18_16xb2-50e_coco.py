_base_ = '../_base_/students/deformable-detr-refine_r18_16xb2-50e_coco.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco/deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth',
    ),
    distill=dict(
        kd_detr=dict(
            queries=dict(random=300),
            loss=dict(type='mmkd_plugin.SharedQueriesLoss', tau=10),
        ),
    ),
)
