_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        review=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=256),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight=1),
        ),
    ),
)
