_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        bckd=dict(tap='bbox_head', loss=dict(type='mmkd_plugin.ProtocolLoss')),
    ),
)
