_base_ = (
    '../_base_/pairs/deeplabv3plus_r101-d8_deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'
)

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
