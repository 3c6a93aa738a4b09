_base_ = '../_base_/pairs/yolox_l_yolox_s_8xb8-300e_coco.py'

model = dict(
    distill=dict(
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto'),
        ),
    ),
)
