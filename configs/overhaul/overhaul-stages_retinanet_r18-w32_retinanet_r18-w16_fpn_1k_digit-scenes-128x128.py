_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        overhaul=dict(
            tap=[
                'backbone.layer2@pre_relu',
                'backbone.layer3@pre_relu',
                'backbone.layer4@pre_relu',
            ],
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
            loss=dict(
                type='mmkd_plugin.OverhaulLoss',
                loss_weight=dict(auto=12.5),
            ),
        ),
    ),
)
