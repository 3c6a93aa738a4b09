_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        bckd=dict(
            tap='bbox_head',
            loss=dict(type='mmkd_plugin.ProtocolLoss', loss_weight=dict(auto=2.5)),
        ),
    ),
)
