_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    task=dict(loss_weight=0.125),
    distill=dict(
        labels=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.JaccardLoss',
                ignore_index=255,
                target='labels',
                upsample=True,
                loss_weight=0.375,
            ),
        ),
        jaccard=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.JaccardLoss',
                ignore_index=255,
                upsample=True,
                loss_weight=0.375,
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.PixelWiseLoss',
                ignore_index=255,
                upsample=True,
                loss_weight=0.125,
            ),
        ),
    ),
)
