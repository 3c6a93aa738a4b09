_base_ = '../_base_/pairs/dino_r18-w32_dino_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        kd_detr=dict(
            queries=dict(random=30),
            loss=dict(type='mmkd_plugin.SharedQueriesLoss', tau=10, loss_weight=dict(auto=2.5)),
        ),
    ),
)
