_base_ = '../_base_/pairs/bcos-fpn_r18-w32_bcos-fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
        explain=dict(
            tap='backbone.add_inverse',
            explainer=dict(type='mmkd_plugin.BcosWeights', scores='decode_head.conv_seg'),
            loss=dict(type='mmkd_plugin.ExplanationLoss', loss_weight=1),
        ),
    ),
)
