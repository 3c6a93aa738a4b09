_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.bottleneck',
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True, act=True),
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=50),
        ),
    ),
)
