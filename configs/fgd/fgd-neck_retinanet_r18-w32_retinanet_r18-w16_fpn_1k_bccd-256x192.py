_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        fgd=dict(
            tap='neck', loss=dict(type='mmkd_plugin.FocalGlobalLoss', loss_weight=dict(auto=2.5))
        ),
    ),
)
