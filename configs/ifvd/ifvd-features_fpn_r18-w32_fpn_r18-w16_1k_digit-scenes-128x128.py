_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        ifvd=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(type='mmkd_plugin.IntraClassVariationLoss', loss_weight=200),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            # the authors' 10 by the number of classes: their loss is a mean over them too
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=0.91),
        ),
    ),
)
