_base_ = '../_base_/pairs/efficientnet-lite0_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        token_relation=dict(
            student_tap=['neck[2]', 'neck[3]'],
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.TokenRelationLoss', queue=256, loss_weight='auto'),
        ),
    ),
)
