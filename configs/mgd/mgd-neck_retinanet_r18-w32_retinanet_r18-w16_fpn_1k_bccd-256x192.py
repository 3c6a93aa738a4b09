_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        mgd=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.MaskedGenerationLoss',
                mask_ratio=0.65,
                loss_weight=dict(auto=12.5),
            ),
        ),
    ),
)
