_base_ = '../_base_/pairs/pspnet_r101-d8_mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        af_dcd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.DenseContrastLoss', fd=2e-6, ctr=5e-3, loss_weight=1),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
