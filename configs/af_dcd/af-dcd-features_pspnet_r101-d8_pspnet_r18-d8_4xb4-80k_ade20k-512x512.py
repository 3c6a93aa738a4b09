_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    distill=dict(
        af_dcd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.DenseContrastLoss', fd=1e-6, ctr=4e-2, loss_weight=1),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=0.5),
        ),
    ),
)
