_base_ = '../_base_/pairs/fcos_x101-64x4d_fcos_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto'),
        ),
    ),
)
