# PKD of the pyramid, and BCKD of what the head makes of it.
_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=12.5)),
        ),
        bckd=dict(
            tap='bbox_head',
            loss=dict(type='mmkd_plugin.ProtocolLoss', loss_weight=dict(auto=12.5)),
        ),
    ),
)
