_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        gram=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.GramLoss', loss_weight=10),
        ),
    ),
)
