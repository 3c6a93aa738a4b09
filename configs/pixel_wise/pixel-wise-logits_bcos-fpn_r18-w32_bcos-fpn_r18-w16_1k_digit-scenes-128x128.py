_base_ = '../_base_/pairs/bcos-fpn_r18-w32_bcos-fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
