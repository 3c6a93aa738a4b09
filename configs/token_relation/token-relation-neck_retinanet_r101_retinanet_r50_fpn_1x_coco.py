_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        token_relation=dict(
            tap=[f'neck[{level}]' for level in range(1, 5)],
            loss=dict(type='mmkd_plugin.TokenRelationLoss', tau=0.07, queue=8192, loss_weight=1),
        ),
    ),
)
