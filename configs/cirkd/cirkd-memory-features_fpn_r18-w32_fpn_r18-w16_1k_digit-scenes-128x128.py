_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        memory=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.MemoryContrastLoss',
                classes=11,
                pixels=2000,
                regions=200,
                loss_weight=dict(auto=12.5),
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=dict(auto=12.5)),
        ),
    ),
)
