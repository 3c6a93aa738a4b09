_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        logits=dict(
            tap='bbox_head.retina_cls',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, sigmoid=True, loss_weight=1),
        ),
        explain=dict(
            tap='neck',
            explainer=dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls'),
            loss=dict(type='mmkd_plugin.ExplanationLoss', loss_weight=1),
        ),
    ),
)
