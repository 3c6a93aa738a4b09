_base_ = './frskd-stages_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

# Beside the self-teacher there is a trained teacher, whose soft labels count from the start.
model = dict(
    teacher=[
        dict(
            name='own',
            type='mmkd_plugin.SelfTeacher',
            tap='backbone',
            neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=2),
        ),
        dict(
            name='large',
            config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
        ),
    ],
    distill=dict(
        features=dict(teacher='own'),
        logits=dict(teacher='own'),
        large=dict(
            tap='decode_head.conv_seg',
            teacher='large',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=1),
        ),
    ),
)
