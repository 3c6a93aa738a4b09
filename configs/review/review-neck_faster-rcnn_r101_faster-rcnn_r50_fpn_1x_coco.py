_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        review=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=256),
            loss=dict(type='mmkd_plugin.ReviewLoss', loss_weight=1),
        ),
    ),
)
