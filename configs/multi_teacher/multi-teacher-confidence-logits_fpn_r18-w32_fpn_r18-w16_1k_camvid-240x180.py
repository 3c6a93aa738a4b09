# Two teachers of one config. Train it twice, the second time with
# --cfg-options randomness.seed=1 --work-dir work_dirs/fpn_r18-w32_3k_camvid-240x180_seed1
_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    teacher=[
        dict(
            name='first',
            config='mmkd::camvid/fpn_r18-w32_3k_camvid-240x180.py',
            checkpoint='work_dirs/fpn_r18-w32_3k_camvid-240x180/iter_3000.pth',
        ),
        dict(
            name='second',
            config='mmkd::camvid/fpn_r18-w32_3k_camvid-240x180.py',
            checkpoint='work_dirs/fpn_r18-w32_3k_camvid-240x180_seed1/iter_3000.pth',
        ),
    ],
    distill=dict(
        cwd=dict(
            teacher=['first', 'second'],
            combine='confidence',
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
