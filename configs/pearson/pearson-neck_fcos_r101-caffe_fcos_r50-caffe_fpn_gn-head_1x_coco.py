_base_ = '../_base_/pairs/fcos_r101-caffe_fcos_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=10),
        ),
    ),
)
