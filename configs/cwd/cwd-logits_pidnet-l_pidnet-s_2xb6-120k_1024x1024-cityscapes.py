_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmseg::pidnet/pidnet-l_2xb6-120k_1024x1024-cityscapes.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pidnet/pidnet-l_2xb6-120k_1024x1024-cityscapes/pidnet-l_2xb6-120k_1024x1024-cityscapes_20230303_114514-0783ca6b.pth',
    ),
    distill=dict(
        cwd=dict(
            tap='class_scores',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
