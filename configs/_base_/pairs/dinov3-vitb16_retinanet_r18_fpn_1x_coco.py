_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# The weights: hf download facebook/dinov3-vitb16-pretrain-lvd1689m --local-dir dinov3-vitb16
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config=dict(
            type='mmkd_plugin.FoundationModel',
            source='transformers',
            path='dinov3-vitb16',
        ),
        checkpoint=None,
    ),
)
