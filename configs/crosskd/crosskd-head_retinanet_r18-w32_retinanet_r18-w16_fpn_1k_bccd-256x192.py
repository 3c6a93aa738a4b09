_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

# before the activation of the first of two convolutions
branches = [f'bbox_head.{branch}_convs.0.activate@input' for branch in ('cls', 'reg')]

model = dict(
    distill=dict(
        crosskd=dict(
            student_tap=branches,
            through=branches,
            teacher_tap=['bbox_head.retina_cls', 'bbox_head.retina_reg'],
            loss=dict(
                type='mmkd_plugin.CrossHeadLoss',
                boxes='decoded',
                box=1,
                loss_weight=dict(auto=2.5),
            ),
        ),
    ),
)
