# Boxes have no soft targets, so the task loss keeps its weight: it has their labels.
_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        soft_target=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4, loss_weight=dict(auto=2.5)),
        ),
    ),
)
