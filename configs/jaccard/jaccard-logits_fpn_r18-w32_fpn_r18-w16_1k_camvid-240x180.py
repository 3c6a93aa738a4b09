_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        jaccard=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.JaccardLoss', ignore_index=255, loss_weight='auto'),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', ignore_index=255, loss_weight='auto'),
        ),
    ),
)
