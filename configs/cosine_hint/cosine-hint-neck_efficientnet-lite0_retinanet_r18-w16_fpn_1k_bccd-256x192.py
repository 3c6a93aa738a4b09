_base_ = '../_base_/pairs/efficientnet-lite0_retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    distill=dict(
        cosine_hint=dict(
            student_tap=['neck[1]', 'neck[2]'],
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=dict(auto=0.5)),
        ),
    ),
)
