_base_ = '../_base_/pairs/gfl_r101_gfl_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        ld=dict(tap='bbox_head', loss=dict(type='mmkd_plugin.BoxDistributionLoss')),
    ),
)
