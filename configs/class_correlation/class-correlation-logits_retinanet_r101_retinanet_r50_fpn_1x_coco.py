_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        class_correlation=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.ClassCorrelationLoss', tau=1, loss_weight=1),
        ),
    ),
)
