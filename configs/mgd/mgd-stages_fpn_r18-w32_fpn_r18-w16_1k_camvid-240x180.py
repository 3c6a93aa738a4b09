_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        mgd=dict(
            tap='backbone.layer4',
            loss=dict(
                type='mmkd_plugin.MaskedGenerationLoss',
                mask_ratio=0.75,
                loss_weight=dict(auto=12.5),
            ),
        ),
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=dict(auto=12.5)),
        ),
    ),
)
