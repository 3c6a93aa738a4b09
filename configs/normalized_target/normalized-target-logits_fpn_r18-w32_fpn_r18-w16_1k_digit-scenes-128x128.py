_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        normalized_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.NormalizedTargetLoss',
                tau=1,
                gamma=1.5,
                loss_weight=dict(auto=12.5),
            ),
        ),
    ),
)
