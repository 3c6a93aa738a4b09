_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        af_dcd=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.DenseContrastLoss', fd=2e-6, ctr=5e-3, loss_weight=dict(auto=0.5)
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=dict(auto=0.5)),
        ),
    ),
)
