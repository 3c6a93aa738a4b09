_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
        explain=dict(
            tap='decode_head.conv_seg@input',
            explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg'),
            loss=dict(type='mmkd_plugin.ExplanationLoss', loss_weight=0.1),
        ),
    ),
)
