_base_ = '../_base_/pairs/segformer_mit-b4_segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

model = dict(
    distill=dict(
        cross_image=dict(
            tap='decode_head.fusion_conv',
            loss=dict(type='mmkd_plugin.CrossImageLoss', tau=0.1, pool=4, loss_weight=1),
        ),
        memory=dict(
            tap='decode_head.fusion_conv',
            loss=dict(
                type='mmkd_plugin.MemoryContrastLoss',
                classes=19,
                pixels=2000,
                regions=2000,
                loss_weight=0.1,
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
