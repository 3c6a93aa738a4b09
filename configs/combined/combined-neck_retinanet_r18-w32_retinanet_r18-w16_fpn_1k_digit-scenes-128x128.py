# Channel-wise distillation of the pyramid, and BCKD of what the head makes of it.
_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=dict(auto=12.5)),
        ),
        bckd=dict(
            tap='bbox_head',
            loss=dict(type='mmkd_plugin.ProtocolLoss', loss_weight=dict(auto=12.5)),
        ),
    ),
)
