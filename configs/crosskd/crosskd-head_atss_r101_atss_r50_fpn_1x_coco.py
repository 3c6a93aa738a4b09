_base_ = '../_base_/pairs/atss_r101_atss_r50_fpn_1x_coco.py'

# before the activation of the third of four convolutions
branches = [f'bbox_head.{branch}_convs.2.activate@input' for branch in ('cls', 'reg')]

model = dict(
    distill=dict(
        crosskd=dict(
            student_tap=branches,
            through=branches,
            teacher_tap=[
                'bbox_head.atss_cls',
                *[f'bbox_head.scales.{n}' for n in range(5)],
                'bbox_head.atss_centerness',
            ],
            loss=dict(type='mmkd_plugin.CrossHeadLoss', boxes='decoded', box=1, centerness=1),
        ),
    ),
)
