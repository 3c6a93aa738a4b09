# Two foundation models whose channels count the same. Get their weights:
#   hf download facebook/dinov3-vitb16-pretrain-lvd1689m --local-dir dinov3-vitb16
#   hf download google/siglip2-base-patch16-256 --local-dir siglip2-base-patch16-256
# Then measure both: tools/fit_connector.py with this config.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=[
        dict(
            name='dinov3',
            config=dict(
                type='mmkd_plugin.FoundationModel', source='transformers', path='dinov3-vitb16'
            ),
            checkpoint=None,
        ),
        dict(
            name='siglip2',
            config=dict(
                type='mmkd_plugin.FoundationModel',
                source='transformers',
                path='siglip2-base-patch16-256',
            ),
            checkpoint=None,
        ),
    ],
    distill=dict(
        dinov3=dict(
            teacher='dinov3',
            student_tap='backbone[3]',
            teacher_tap='maps',
            teacher_connector=dict(type='mmkd_plugin.PHISNormalizer'),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=1),
        ),
        siglip2=dict(
            teacher='siglip2',
            student_tap='backbone[3]',
            teacher_tap='maps',
            teacher_connector=dict(type='mmkd_plugin.PHISNormalizer'),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=1),
        ),
    ),
)
