_base_ = '../../digit_scenes/dino_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(  # train it first: tools/train.py with this config
        config='mmkd::digit_scenes/dino_r18-w32_1k_digit-scenes-128x128.py',
        checkpoint='work_dirs/dino_r18-w32_1k_digit-scenes-128x128/iter_1000.pth',
    ),
)
