_base_ = '../_base_/pairs/efficientnet-lite0_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        gram=dict(
            student_tap=['neck[2]', 'neck[3]'],
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.GramLoss', loss_weight='auto'),
        ),
    ),
)
