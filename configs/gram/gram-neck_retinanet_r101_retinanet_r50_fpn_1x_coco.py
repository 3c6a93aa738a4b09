# The finest level has 16800 positions, and 282 million pairs of them an image.
_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        gram=dict(
            tap=[f'neck[{level}]' for level in range(1, 5)],
            loss=dict(type='mmkd_plugin.GramLoss', loss_weight=10),
        ),
    ),
)
