# Class scores and pyramid of a teacher of the task, and a backbone that learnt on ImageNet.
_base_ = (
    './combined-foundation-neck_fpn_r18-w32-efficientnet-lite0_fpn_r18-w16_1k_camvid-240x180.py'
)

model = dict(
    distill=dict(
        pearson=dict(
            teacher='task',
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=12.5)),
        ),
    ),
)
