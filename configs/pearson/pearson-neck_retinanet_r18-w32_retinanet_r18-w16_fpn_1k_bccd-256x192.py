_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=0.5)),
        ),
    ),
)
