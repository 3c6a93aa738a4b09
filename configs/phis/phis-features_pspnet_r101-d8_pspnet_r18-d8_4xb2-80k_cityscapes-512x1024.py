_base_ = '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

# Measure the teacher first: tools/fit_connector.py with this config.
model = dict(
    distill=dict(
        phis=dict(
            tap='decode_head.bottleneck',
            teacher_connector=dict(type='mmkd_plugin.PHISNormalizer'),
            loss=dict(type='mmkd_plugin.HintLoss', loss_weight=1),
        ),
    ),
)
