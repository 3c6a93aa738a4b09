_base_ = '../_base_/pairs/faster-rcnn_r101_faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        mgd=dict(
            tap=[f'neck[{level}]' for level in range(4)],
            loss=dict(type='mmkd_plugin.MaskedGenerationLoss', mask_ratio=0.45, loss_weight=5e-7),
        ),
    ),
)
