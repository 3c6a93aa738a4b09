_base_ = 'crosskd-head_gfl_r101_gfl_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=6),
        ),
    ),
)
