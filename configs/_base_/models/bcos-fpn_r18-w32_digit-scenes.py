# Semantic FPN of B-cos layers on a B-cos ResNet-18 of half the usual width, trained from scratch on
# DigitScenes. It has no activations, and a bias in the classifier alone.
conv_cfg = dict(type='mmkd_plugin.BcosConv2d', b=2)
norm_cfg = dict(type='mmkd_plugin.BcosBatchNorm2d')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[0, 0, 0],  # RGB in [0, 1]; the backbone appends the inverse
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 128),
    ),
    backbone=dict(
        type='mmkd_plugin.BcosResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        strides=(1, 2, 2, 1),  # the digits are small: stride 16 is coarse enough
    ),
    neck=dict(
        type='FPN',
        in_channels=[32, 64, 128, 256],
        out_channels=64,
        num_outs=4,
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='FPNHead',
        in_channels=[64, 64, 64, 64],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 16],
        channels=64,
        dropout_ratio=0.0,
        num_classes=11,
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
        act_cfg=None,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        # ten times the usual spread, because the training is short
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg')),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
