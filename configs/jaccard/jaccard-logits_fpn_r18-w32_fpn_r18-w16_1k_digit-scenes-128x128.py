_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    task=dict(loss_weight=0.5),
    distill=dict(
        jaccard=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.JaccardLoss', ignore_index=255, loss_weight=dict(auto=12.5)
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.PixelWiseLoss', ignore_index=255, loss_weight=dict(auto=12.5)
            ),
        ),
    ),
)
