# Channel-wise distillation of the class scores, and PKD of the backbone: for models without a neck.
_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=dict(auto=2.5)),
        ),
        pearson=dict(
            tap='backbone',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=2.5)),
        ),
    ),
)
