_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        ifvd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.IntraClassVariationLoss', loss_weight=200),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            # the authors' 10 by the number of classes: their loss is a mean over them too
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=0.53),
        ),
    ),
)
