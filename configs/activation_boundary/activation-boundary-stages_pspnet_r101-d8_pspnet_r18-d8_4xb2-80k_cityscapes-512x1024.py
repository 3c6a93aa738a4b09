_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    task=dict(schedule=dict(start=10000)),
    distill=dict(
        activation_boundary=dict(
            tap=[
                'backbone.layer1@pre_relu',
                'backbone.layer2@pre_relu',
                'backbone.layer3@pre_relu',
                'backbone.layer4@pre_relu',
            ],
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
            loss=dict(
                type='mmkd_plugin.ActivationBoundaryLoss',
                margin=1,
                loss_weight=[0.000375, 0.00075, 0.0015, 0.003],
            ),
            schedule=dict(stop=10000),
        ),
    ),
)
