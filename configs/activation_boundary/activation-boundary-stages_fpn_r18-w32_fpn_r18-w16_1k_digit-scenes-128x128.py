_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
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
                loss_weight=dict(auto=0.5),  # for Adam, no larger than the task
            ),
        ),
    ),
)
