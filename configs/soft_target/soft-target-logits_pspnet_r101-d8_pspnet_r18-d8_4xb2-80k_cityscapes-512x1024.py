_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    task=dict(loss_weight=0.1),
    distill=dict(
        soft_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4, loss_weight=0.9),
        ),
    ),
)
