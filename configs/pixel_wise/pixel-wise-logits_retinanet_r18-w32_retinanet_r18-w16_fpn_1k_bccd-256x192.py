_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        pixel_wise=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, sigmoid=True, loss_weight='auto'),
        ),
    ),
)
