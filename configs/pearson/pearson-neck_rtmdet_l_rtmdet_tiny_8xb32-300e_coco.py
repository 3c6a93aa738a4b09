_base_ = '../_base_/pairs/rtmdet_l_rtmdet_tiny_8xb32-300e_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto'),
        ),
    ),
)
