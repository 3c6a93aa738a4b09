_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=dict(auto=12.5)
            ),
        ),
    ),
)
