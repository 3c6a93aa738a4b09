_base_ = '../_base_/pairs/deeplabv3_r101-d8_deeplabv3_r18-d8_4xb4-40k_voc12aug-512x512.py'

model = dict(
    distill=dict(
        af_dcd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.DenseContrastLoss', fd=1e-6, ctr=5e-3, loss_weight=1),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
