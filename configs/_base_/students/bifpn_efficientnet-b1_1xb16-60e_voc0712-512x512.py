_base_ = './bifpn_efficientnet-b0_1xb16-60e_voc0712-512x512.py'

model = dict(
    backbone=dict(
        arch='b1',
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/efficientnet/efficientnet-b1_3rdparty_8xb32-aa_in1k_20220119-619d8ae3.pth'
        ),
    ),
    neck=dict(channels=88),
    decode_head=dict(in_channels=88),
)
