_base_ = '../_base_/pairs/retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        fsp=dict(
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            loss=dict(type='mmkd_plugin.FSPLoss', pool='max', loss_weight=dict(auto=0.5)),
        ),
    ),
)
