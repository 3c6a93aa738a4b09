_base_ = 'ld-head_gfl_r101_gfl_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        hint=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.HintLoss', region=0.5, loss_weight=2),
        ),
    ),
)
