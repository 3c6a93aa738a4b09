_base_ = 'mmseg::ocrnet/ocrnet_hr18_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmseg::ocrnet/ocrnet_hr48_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/ocrnet/ocrnet_hr48_512x1024_80k_cityscapes/ocrnet_hr48_512x1024_80k_cityscapes_20200601_222752-9076bcdf.pth',
    ),
    distill=dict(
        cwd=dict(
            tap='class_scores',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
