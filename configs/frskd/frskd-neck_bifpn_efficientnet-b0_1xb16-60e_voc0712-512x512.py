_base_ = '../_base_/students/bifpn_efficientnet-b0_1xb16-60e_voc0712-512x512.py'

schedule = dict(start=40, ramp=20, curve='exp', by_epoch=True)
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='mmkd_plugin.SelfTeacher',
        tap='neck',
        neck=dict(type='mmkd_plugin.BiFPNSegSelfTeacher', num_layers=2),
    ),
    distill=dict(
        features=dict(
            tap='neck',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=50),
            schedule=schedule,
        ),
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, upsample=True, loss_weight=1),
            schedule=schedule,
        ),
    ),
)
