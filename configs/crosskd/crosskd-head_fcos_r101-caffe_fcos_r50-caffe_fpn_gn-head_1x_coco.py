_base_ = '../_base_/pairs/fcos_r101-caffe_fcos_r50-caffe_fpn_gn-head_1x_coco.py'

# behind the group norm and before the activation of the second of four convolutions
branches = [f'bbox_head.{branch}_convs.1.activate@input' for branch in ('cls', 'reg')]

model = dict(
    distill=dict(
        crosskd=dict(
            student_tap=branches,
            through=branches,
            teacher_tap=['bbox_head.conv_cls', *[f'bbox_head.scales.{n}' for n in range(5)]],
            loss=dict(
                type='mmkd_plugin.CrossHeadLoss',
                boxes='decoded',
                cls=0.4,
                box=0.75,
                overlap='log_iou',
                divide_by='centerness',
            ),
        ),
    ),
)
