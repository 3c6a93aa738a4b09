# Nine times the weight of soft targets.
_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        soft_target=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='mmkd_plugin.SoftTargetLoss',
                tau=2,
                standardize=True,
                loss_weight=dict(auto=2.5),
            ),
        ),
    ),
)
