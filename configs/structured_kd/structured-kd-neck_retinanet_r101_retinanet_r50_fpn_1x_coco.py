_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        pixel_wise=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=10),
        ),
        pair_wise=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PairWiseLoss', pool=2, loss_weight=10),
        ),
    ),
)
