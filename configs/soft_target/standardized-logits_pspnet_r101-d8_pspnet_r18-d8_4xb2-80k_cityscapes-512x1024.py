# Nine times the weight of soft targets.
_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        soft_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=2, standardize=True, loss_weight=8.1),
        ),
    ),
)
