_base_ = '../_base_/pairs/atss_r101_atss_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        bckd=dict(tap=['bbox_head[0]', 'bbox_head[1]'], loss=dict(type='mmkd_plugin.ProtocolLoss')),
    ),
)
