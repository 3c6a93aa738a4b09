# Two teachers of one config. Train it twice, the second time with
# --cfg-options randomness.seed=1 --work-dir work_dirs/fpn_r18-w32_1k_digit-scenes-128x128_seed1
_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'

model = dict(
    teacher=[
        dict(
            name='first',
            config='mmkd::digit_scenes/fpn_r18-w32_1k_digit-scenes-128x128.py',
            checkpoint='work_dirs/fpn_r18-w32_1k_digit-scenes-128x128/iter_1000.pth',
        ),
        dict(
            name='second',
            config='mmkd::digit_scenes/fpn_r18-w32_1k_digit-scenes-128x128.py',
            checkpoint='work_dirs/fpn_r18-w32_1k_digit-scenes-128x128_seed1/iter_1000.pth',
        ),
    ],
    distill=dict(
        cwd=dict(
            teacher=['first', 'second'],
            combine='mean',
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
