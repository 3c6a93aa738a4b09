_base_ = '../_base_/pairs/deeplabv3_r101-d8_deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        mgd=dict(
            tap='backbone.layer4',
            loss=dict(type='mmkd_plugin.MaskedGenerationLoss', mask_ratio=0.75, loss_weight=2e-5),
        ),
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=3),
        ),
    ),
)
