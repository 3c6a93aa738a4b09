# On the RoIs that the student samples: class scores of all of them, boxes of the positive ones.
_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        scores=dict(
            tap='roi_head.bbox_head.fc_cls',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=1, loss_weight='auto'),
        ),
        boxes=dict(
            tap='roi_head.bbox_head.fc_reg',
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight='auto'),
        ),
    ),
)
