# Boxes have no soft targets, so the task loss keeps its weight: it has their labels.
_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        soft_target=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4, loss_weight=0.9),
        ),
    ),
)
