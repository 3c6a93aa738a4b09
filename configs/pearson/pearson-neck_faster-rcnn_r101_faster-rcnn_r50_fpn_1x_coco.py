_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=6),
        ),
    ),
)
