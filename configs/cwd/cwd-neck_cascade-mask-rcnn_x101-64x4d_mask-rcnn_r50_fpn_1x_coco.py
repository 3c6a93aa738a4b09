_base_ = '../_base_/pairs/cascade-mask-rcnn_x101-64x4d_mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto'),
        ),
    ),
)
