# On the RoIs that the student samples: class scores of all of them, masks of the positive ones.
_base_ = '../_base_/pairs/mask-rcnn_r101_mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        scores=dict(
            tap='roi_head.bbox_head.fc_cls',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=1, loss_weight='auto'),
        ),
        masks=dict(
            tap='roi_head.mask_head.conv_logits',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', sigmoid=True, loss_weight='auto'),
        ),
    ),
)
