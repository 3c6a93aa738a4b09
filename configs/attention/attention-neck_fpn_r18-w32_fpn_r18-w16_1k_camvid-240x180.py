_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        attention=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', p=2, loss_weight='auto'),
        ),
    ),
)
