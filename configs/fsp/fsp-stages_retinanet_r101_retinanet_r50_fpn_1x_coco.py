_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    task=dict(schedule=dict(start=1, by_epoch=True)),
    distill=dict(
        fsp=dict(
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            loss=dict(type='mmkd_plugin.FSPLoss', pool='max', loss_weight=50),
            schedule=dict(stop=1, by_epoch=True),
        ),
    ),
)
