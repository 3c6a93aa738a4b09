_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb4-40k_voc12aug-512x512.py'

model = dict(
    distill=dict(
        cross_image=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.CrossImageLoss', tau=0.1, loss_weight=1),
        ),
        memory=dict(
            tap='decode_head.bottleneck',
            loss=dict(
                type='mmkd_plugin.MemoryContrastLoss',
                classes=21,
                pixels=20000,
                regions=2000,
                loss_weight=0.01,
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
