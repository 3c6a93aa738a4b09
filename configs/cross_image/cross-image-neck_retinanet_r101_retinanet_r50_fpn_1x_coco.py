# The finest level has 16800 positions an image; pooled by 4, 1050.
_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        cross_image=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.CrossImageLoss', tau=0.1, pool=4, loss_weight=1),
        ),
    ),
)
