_base_ = '../_base_/pairs/reppoints-moment_r101_reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=10),
        ),
    ),
)
