# Each stage of the teacher is asked on the RoIs that the student samples in the same stage.
_base_ = '../_base_/pairs/cascade-rcnn_r101_cascade-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        scores=dict(
            tap=[
                'roi_head.bbox_head.0.fc_cls',
                'roi_head.bbox_head.1.fc_cls',
                'roi_head.bbox_head.2.fc_cls',
            ],
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=1, loss_weight='auto'),
        ),
    ),
)
