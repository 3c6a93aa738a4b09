_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    task=dict(schedule=dict(start=1, by_epoch=True)),
    distill=dict(
        activation_boundary=dict(
            tap=[
                'backbone.layer2@pre_relu',
                'backbone.layer3@pre_relu',
                'backbone.layer4@pre_relu',
            ],
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
            loss=dict(
                type='mmkd_plugin.ActivationBoundaryLoss',
                margin=1,
                loss_weight=[0.00075, 0.0015, 0.003],
            ),
            schedule=dict(stop=1, by_epoch=True),
        ),
    ),
)
