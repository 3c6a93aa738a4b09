_base_ = '../_base_/pairs/mask2former_swin-l_mask2former_r50_8xb2-90k_cityscapes-512x1024.py'

model = dict(
    distill=dict(
        shared_masks=dict(
            queries=dict(random=0, student=True),
            loss=dict(type='mmkd_plugin.SharedMasksLoss', loss_weight='auto'),
        ),
    ),
)
