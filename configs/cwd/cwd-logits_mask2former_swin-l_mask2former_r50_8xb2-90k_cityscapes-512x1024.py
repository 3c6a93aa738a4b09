_base_ = '../_base_/pairs/mask2former_swin-l_mask2former_r50_8xb2-90k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='class_scores',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto'),
        ),
    ),
)
