_base_ = './frskd-neck_bifpn_efficientnet-b0_1xb16-60e_voc0712-512x512.py'

model = dict(
    student=dict(
        data_preprocessor=dict(
            type='mmkd_plugin.SegDataPreProcessor',
            batch_augments=[dict(type='mmkd_plugin.CutMix', prob=0.5)],
        ),
    ),
)
