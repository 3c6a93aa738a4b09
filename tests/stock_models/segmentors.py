"""Segmentors that classify pixels."""

from __future__ import annotations

from typing import Any

from tests.stock_models.pieces import MEAN, STD, resnet


def segmentor(backbone: dict, decode_head: dict, classes: int, **preprocessor: Any) -> dict:
    return dict(
        _scope_='mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            **{'mean': MEAN, 'std': STD, 'bgr_to_rgb': True, 'size': (64, 64), **preprocessor},
        ),
        backbone=backbone,
        decode_head=dict(
            num_classes=classes,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            dropout_ratio=0.0,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
            **decode_head,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def pspnet(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """PSPNet on a dilated ResNet-18, stride 8."""
    dilated = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    head = dict(type='PSPHead', in_channels=8 * width, in_index=3, channels=2 * width)
    return segmentor(
        resnet(width, kind='ResNetV1c', contract_dilation=True, **dilated),
        dict(head, pool_scales=(1, 2)),
        classes,
        **preprocessor,
    )


def fcn(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """FCN on a plain ResNet-18, stride 32."""
    head = dict(type='FCNHead', in_channels=8 * width, in_index=3, channels=2 * width, num_convs=1)
    return segmentor(resnet(width), head, classes, **preprocessor)


def _cascade(kind: str, width: int, classes: int) -> dict:
    """A cascade of two decode heads on a plain ResNet-18."""
    head = dict(
        in_channels=8 * width,
        in_index=3,
        channels=2 * width,
        num_classes=classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        dropout_ratio=0.0,
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    config = fcn(width, classes)
    config.update(type='CascadeEncoderDecoder', num_stages=2)
    second = (
        dict(head, type='OCRHead', ocr_channels=width)
        if kind == 'OCRHead'
        else {
            **{key: value for key, value in head.items() if key != 'norm_cfg'},
            'type': 'PointHead',
            'num_fcs': 1,
            'coarse_pred_each_layer': True,
            'in_channels': [8 * width],
            'in_index': [3],
        }
    )
    config['decode_head'] = [dict(head, type='FCNHead', num_convs=1), second]
    points = dict(num_points=16, oversample_ratio=3, importance_sample_ratio=0.75)
    config['train_cfg'] = points
    config['test_cfg'].update(subdivision_steps=1, subdivision_num_points=16, scale_factor=2)
    return config


def ocrnet(width: int = 8, classes: int = 5) -> dict:
    """OCRNet: its second head reads the features and the scores of the first."""
    return _cascade('OCRHead', width, classes)


def pointrend(width: int = 8, classes: int = 5) -> dict:
    """PointRend: its second head reads points that it chooses by the scores of the first."""
    return _cascade('PointHead', width, classes)


def segformer(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """SegFormer, a transformer, stride 4."""
    backbone = dict(
        type='MixVisionTransformer',
        embed_dims=width,
        num_stages=4,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        sr_ratios=[8, 4, 2, 1],
    )
    head = dict(
        type='SegformerHead',
        in_channels=[width, 2 * width, 4 * width, 8 * width],
        in_index=[0, 1, 2, 3],
        channels=2 * width,
    )
    return segmentor(backbone, head, classes, **preprocessor)


def beit(width: int = 8, classes: int = 5, side: int = 64, **preprocessor: Any) -> dict:
    """FCN on BEiT, a transformer that takes only images of ``side`` pixels; stride 16."""
    backbone = dict(
        type='BEiT',
        img_size=(side, side),
        patch_size=16,
        embed_dims=2 * width,
        num_layers=3,
        num_heads=2,
        mlp_ratio=2,
        out_indices=(0, 1, 2),
        qv_bias=True,
        init_values=0.1,
    )
    head = dict(type='FCNHead', in_channels=2 * width, in_index=2, channels=width, num_convs=1)
    return segmentor(backbone, head, classes, **{'size': (side, side), **preprocessor})


def upernet_swin(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """UPerNet on a Swin transformer, stride 4."""
    backbone = dict(
        type='SwinTransformer',
        embed_dims=width,
        window_size=4,
        mlp_ratio=2,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
    )
    head = dict(
        type='UPerHead',
        in_channels=[width * 2**i for i in range(4)],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2),
        channels=2 * width,
    )
    return segmentor(backbone, head, classes, **preprocessor)


def segnext(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """SegNeXt: MSCAN and a head that factorises a matrix, starting at random; stride 8."""
    stages = [width * 2**i for i in range(4)]
    backbone = dict(
        type='MSCAN',
        embed_dims=stages,
        mlp_ratios=[2, 2, 2, 2],
        depths=[1, 1, 1, 1],
        norm_cfg=dict(type='BN'),
    )
    head = dict(
        type='LightHamHead',
        in_channels=stages[1:],
        in_index=[1, 2, 3],
        channels=2 * width,
        ham_channels=2 * width,
        ham_kwargs=dict(MD_R=4, train_steps=2, eval_steps=2),
    )
    model = segmentor(backbone, head, classes, **preprocessor)
    model['decode_head']['norm_cfg'] = dict(type='GN', num_groups=2)
    return model


def _small_head(channels: int, index: int, classes: int = 5, **kwargs: Any) -> dict:
    """A head of the real-time segmentors."""
    return dict(
        type='FCNHead',
        in_channels=channels,
        channels=channels,
        in_index=index,
        num_convs=1,
        concat_input=False,
        num_classes=classes,
        norm_cfg=dict(type='BN'),
        **kwargs,
    )


def stdc(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """STDC with an auxiliary head, and one for edges; stride 8."""
    stages = [width, width, 2 * width, 4 * width, 8 * width]
    backbone = dict(
        type='STDCContextPathNet',
        backbone_cfg=dict(
            type='STDCNet',
            stdc_type='STDCNet1',
            in_channels=3,
            channels=stages,
            bottleneck_type='cat',
            num_convs=4,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='ReLU'),
        ),
        last_in_channels=(stages[4], stages[3]),
        out_channels=width,
        ffm_cfg=dict(in_channels=3 * width, out_channels=2 * width, scale_factor=4),
    )
    head = _small_head(2 * width, 3)
    head.pop('num_classes')
    head.pop('norm_cfg')
    model = segmentor(backbone, head, classes, **preprocessor)
    edges = dict(type='STDCHead', boundary_threshold=0.1)
    edges['loss_decode'] = [
        dict(type='CrossEntropyLoss', loss_name='loss_ce', use_sigmoid=True),
        dict(type='DiceLoss', loss_name='loss_dice'),
    ]
    model['auxiliary_head'] = [
        _small_head(width, 2, classes),
        {**_small_head(2 * width, 0, 2), **edges},
    ]
    return model


def bisenetv2(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """BiSeNetV2 with an auxiliary head, stride 8."""
    backbone = dict(
        type='BiSeNetV2',
        detail_channels=(width, width, 2 * width),
        semantic_channels=(width, width, width, 2 * width),
        semantic_expansion_ratio=1,
        bga_channels=2 * width,
    )
    head = _small_head(2 * width, 0)
    head.pop('num_classes')
    head.pop('norm_cfg')
    model = segmentor(backbone, head, classes, **preprocessor)
    model['auxiliary_head'] = [_small_head(width, 1, classes)]
    return model


def pidnet(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """PIDNet: three branches, of which one learns edges; stride 8."""
    backbone = dict(
        type='PIDNet', channels=width, ppm_channels=width, num_stem_blocks=1, num_branch_blocks=1
    )
    model = segmentor(backbone, dict(type='PIDHead'), classes, **preprocessor)
    head = model['decode_head']
    head.pop('dropout_ratio')
    pixels = dict(type='OhemCrossEntropy', thres=0.9, min_kept=100)
    losses = [dict(type='CrossEntropyLoss'), pixels, dict(type='BoundaryLoss'), pixels]
    head.update(in_channels=4 * width, channels=4 * width, loss_decode=losses)
    return model


def ddrnet(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """DDRNet: two branches, stride 8."""
    backbone = dict(type='DDRNet', channels=width, ppm_channels=width, norm_cfg=dict(type='BN'))
    head = dict(type='DDRHead', in_channels=4 * width, channels=2 * width)
    model = segmentor(backbone, head, classes, **preprocessor)
    pixels = dict(type='OhemCrossEntropy', thres=0.9, min_kept=100)
    model['decode_head']['loss_decode'] = [pixels, pixels]
    return model
