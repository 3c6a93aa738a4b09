_base_ = '../_base_/pairs/upernet_convnext-b_mobilenet-v3-d8_lraspp_4xb4-160k_ade20k-512x512.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
