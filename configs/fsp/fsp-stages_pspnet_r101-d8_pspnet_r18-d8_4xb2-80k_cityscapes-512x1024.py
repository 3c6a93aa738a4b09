_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    task=dict(schedule=dict(start=10000)),
    distill=dict(
        fsp=dict(
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            loss=dict(type='mmkd_plugin.FSPLoss', pool='max', loss_weight=50),
            schedule=dict(stop=10000),
        ),
    ),
)
