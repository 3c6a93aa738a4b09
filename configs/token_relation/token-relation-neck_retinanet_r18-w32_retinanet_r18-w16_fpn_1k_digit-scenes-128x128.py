_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        token_relation=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.TokenRelationLoss',
                tau=0.07,
                queue=256,
                loss_weight=dict(auto=0.5),
            ),
        ),
    ),
)
