_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        decoupled=dict(
            tap='roi_head.bbox_head.fc_cls',
            loss=dict(type='mmkd_plugin.DecoupledLoss', alpha=1, beta=0.25, tau=1, loss_weight=1),
        ),
    ),
)
