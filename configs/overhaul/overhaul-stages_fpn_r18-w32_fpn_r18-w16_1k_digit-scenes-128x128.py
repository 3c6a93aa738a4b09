_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        overhaul=dict(
            tap=[
                'backbone.layer1@pre_relu',
                'backbone.layer2@pre_relu',
                'backbone.layer3@pre_relu',
                'backbone.layer4@pre_relu',
            ],
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
            loss=dict(
                type='mmkd_plugin.OverhaulLoss',
                loss_weight=[1.25e-6, 2.5e-6, 5e-6, 1e-5],
            ),
        ),
    ),
)
