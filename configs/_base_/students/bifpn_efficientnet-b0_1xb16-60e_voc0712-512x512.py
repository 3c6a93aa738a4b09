# The segmentation model of FRSKD: an EfficientNet, three layers of its BiFPN, and a head on the
# finest level. The backbone is mmdetection's, which needs mmcv with its compiled ops.
_base_ = [
    '../datasets/voc0712_seg.py',
    'mmseg::_base_/default_runtime.py',
    '../schedules/schedule_60e_frskd-voc.py',
]

crop_size = (512, 512)
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type='mmdet.EfficientNet',
        arch='b0',
        out_indices=(2, 3, 4, 5),  # strides 4, 8, 16, 32
        norm_cfg=dict(type='BN', requires_grad=True, eps=1e-3, momentum=0.01),
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/efficientnet/efficientnet-b0_3rdparty_8xb32-aa_in1k_20220119-8d939117.pth',
        ),
    ),
    neck=dict(
        type='mmkd_plugin.BiFPN',
        in_channels=[24, 40, 112, 320],
        channels=64,
        num_layers=3,
        num_levels=6,
    ),
    decode_head=dict(
        type='mmkd_plugin.FCNHead3x3',
        in_channels=64,
        in_index=0,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
log_processor = dict(by_epoch=True)
