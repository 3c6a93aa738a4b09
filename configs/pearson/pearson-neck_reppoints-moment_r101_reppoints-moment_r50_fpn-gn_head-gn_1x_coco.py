_base_ = '../_base_/pairs/reppoints-moment_r101_reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=10),
        ),
    ),
)
