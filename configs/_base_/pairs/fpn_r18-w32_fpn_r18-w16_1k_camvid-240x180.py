_base_ = '../../camvid/fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(  # train it first: tools/train.py with this config
        config='mmkd::camvid/fpn_r18-w32_3k_camvid-240x180.py',
        checkpoint='work_dirs/fpn_r18-w32_3k_camvid-240x180/iter_3000.pth',
    ),
)
