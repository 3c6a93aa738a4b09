_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        normalized_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.NormalizedTargetLoss', tau=1, gamma=1.5, loss_weight=1),
        ),
    ),
)
