_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=10),
        ),
    ),
)
