# Channel-wise distillation of the class scores, and PKD of the pyramid and of the stages below it.
_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=dict(auto=12.5)),
        ),
        pearson=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=12.5)),
        ),
        stages=dict(
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight=dict(auto=12.5)),
        ),
    ),
)
