_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        decoupled=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.DecoupledLoss',
                alpha=1,
                beta=0.25,
                tau=1,
                loss_weight=dict(auto=12.5),
            ),
        ),
    ),
)
