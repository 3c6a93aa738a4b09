_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        hint=dict(
            tap='backbone.layer2',
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=10),
        ),
        soft_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4, loss_weight=0.9),
        ),
    ),
)
