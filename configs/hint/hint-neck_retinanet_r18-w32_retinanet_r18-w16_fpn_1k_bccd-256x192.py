_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        hint=dict(
            tap='neck',
            connector=dict(type='mmkd_plugin.ConvConnector', bias=False),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight='auto'),
        ),
    ),
)
