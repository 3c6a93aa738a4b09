_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        distance=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.RKDDistanceLoss', embed='pool', gather=True, loss_weight=25
            ),
        ),
        angle=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.RKDAngleLoss', embed='pool', gather=True, loss_weight=50),
        ),
    ),
)
