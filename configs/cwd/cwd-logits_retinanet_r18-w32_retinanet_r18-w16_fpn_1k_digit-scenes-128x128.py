_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
