_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=dict(auto=12.5)
            ),
        ),
    ),
)
