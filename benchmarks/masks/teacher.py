# MaskFormer for DigitScenes. Its backbone starts as that of the teacher of `mmkd demo`.
_base_ = [
    '../../configs/_base_/datasets/digit_scenes_seg.py',
    '../../configs/_base_/schedules/schedule_1k_small.py',
    '../../configs/_base_/runtime_small.py',
]
default_scope = 'mmseg'
norm_cfg = dict(type='BN', requires_grad=True)
attention = dict(embed_dims=64, num_heads=4, batch_first=True)
costs = [
    dict(type='mmdet.ClassificationCost', weight=2.0),
    dict(type='mmdet.FocalLossCost', weight=20.0, binary_input=True),
    dict(type='mmdet.DiceCost', weight=1.0, pred_act=True, eps=1.0),
]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 128),
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=20,
        base_channels=20,
        strides=(1, 2, 2, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='MaskFormerHead',
        in_channels=[20, 40, 80, 160],
        in_index=[0, 1, 2, 3],
        feat_channels=64,
        out_channels=64,
        num_classes=11,
        num_queries=20,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.PixelDecoder',
            norm_cfg=dict(type='GN', num_groups=8),
            act_cfg=dict(type='ReLU'),
        ),
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=32, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss', loss_weight=2.0, class_weight=[1.0] * 11 + [0.1]
        ),
        loss_mask=dict(type='mmdet.FocalLoss', loss_weight=20.0),
        loss_dice=dict(
            type='mmdet.DiceLoss', activate=True, naive_dice=True, eps=1.0, loss_weight=1.0
        ),
        train_cfg=dict(
            assigner=dict(type='mmdet.HungarianAssigner', match_costs=costs),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
load_from = 'tools/demo_teacher/fpn_r18-w20_digit-scenes.pth'
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, begin=0, end=30, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=30, end=300, eta_min=0, by_epoch=False),
]
train_cfg = dict(max_iters=300, val_interval=300)
