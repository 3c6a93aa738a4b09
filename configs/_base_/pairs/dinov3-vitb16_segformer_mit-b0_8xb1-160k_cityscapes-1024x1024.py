_base_ = 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

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
