_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        token_relation=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.TokenRelationLoss',
                tau=0.07,
                queue=256,
                loss_weight=dict(auto=0.5),
            ),
        ),
    ),
)
