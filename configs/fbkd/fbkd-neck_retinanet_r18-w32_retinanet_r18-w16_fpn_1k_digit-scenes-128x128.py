_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        fbkd=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.AttentionGuidedLoss',
                reduction=2,
                pool=2,
                loss_weight=dict(auto=0.5),
            ),
        ),
    ),
)
