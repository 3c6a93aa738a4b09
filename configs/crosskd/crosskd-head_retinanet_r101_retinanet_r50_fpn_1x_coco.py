_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

# before the activation of the third of four convolutions
branches = [f'bbox_head.{branch}_convs.2.activate@input' for branch in ('cls', 'reg')]

model = dict(
    distill=dict(
        crosskd=dict(
            student_tap=branches,
            through=branches,
            teacher_tap=['bbox_head.retina_cls', 'bbox_head.retina_reg'],
            loss=dict(type='mmkd_plugin.CrossHeadLoss', boxes='decoded', box=1),
        ),
    ),
)
