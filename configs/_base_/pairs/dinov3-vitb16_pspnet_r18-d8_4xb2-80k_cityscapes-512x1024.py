_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

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
