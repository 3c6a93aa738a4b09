_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        fbkd=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(
                type='mmkd_plugin.AttentionGuidedLoss',
                reduction=[4, 4, 2, 2],
                pool=[8, 4, 2, 2],
            ),
        ),
    ),
)
