_base_ = 'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024_20230425_162633-81601db0.pth',
    ),
    distill=dict(
        cwd=dict(
            tap='class_scores',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
