_base_ = '../_base_/pairs/deeplabv3_r101-d8_deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        class_correlation=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ClassCorrelationLoss', tau=1, loss_weight=1),
        ),
        auxiliary=dict(
            tap='auxiliary_head.conv_seg',
            loss=dict(type='mmkd_plugin.ClassCorrelationLoss', tau=1, loss_weight=0.4),
        ),
    ),
)
