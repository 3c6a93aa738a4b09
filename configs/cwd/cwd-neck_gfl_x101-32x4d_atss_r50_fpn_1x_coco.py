_base_ = '../_base_/pairs/gfl_x101-32x4d_atss_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto'),
        ),
    ),
)
