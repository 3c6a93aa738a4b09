_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        hint=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=10),
        ),
    ),
)
