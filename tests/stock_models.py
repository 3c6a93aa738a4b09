"""Small real models for the tests: the stock classes, a few channels wide."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkd_plugin.taps.example import example_batch

#: How mask classifiers are trained: points of masks, and the costs of a match.
MASK_POINTS = dict(num_points=64, oversample_ratio=3.0, importance_sample_ratio=0.75)
MASK_COSTS = [
    dict(type='ClassificationCost'),
    dict(type='CrossEntropyLossCost', use_sigmoid=True),
    dict(type='DiceCost', pred_act=True),
]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def resnet(width: int = 8, depth: int = 18, kind: str = 'ResNet', **kwargs: Any) -> dict:
    """A ResNet with ``width`` channels in its first stage."""
    return dict(
        type=kind,
        depth=depth,
        base_channels=width,
        stem_channels=width,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        **kwargs,
    )


def _seg(backbone: dict, decode_head: dict, classes: int, **preprocessor: Any) -> dict:
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
    return _seg(
        resnet(width, kind='ResNetV1c', contract_dilation=True, **dilated),
        dict(head, pool_scales=(1, 2)),
        classes,
        **preprocessor,
    )


def fcn(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """FCN on a plain ResNet-18, stride 32."""
    head = dict(type='FCNHead', in_channels=8 * width, in_index=3, channels=2 * width, num_convs=1)
    return _seg(resnet(width), head, classes, **preprocessor)


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
    return _seg(backbone, head, classes, **preprocessor)


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
    return _seg(backbone, head, classes, **{'size': (side, side), **preprocessor})


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
    return _seg(backbone, head, classes, **preprocessor)


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
    model = _seg(backbone, head, classes, **preprocessor)
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
    model = _seg(backbone, head, classes, **preprocessor)
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
    model = _seg(backbone, head, classes, **preprocessor)
    model['auxiliary_head'] = [_small_head(width, 1, classes)]
    return model


def pidnet(width: int = 8, classes: int = 5, **preprocessor: Any) -> dict:
    """PIDNet: three branches, of which one learns edges; stride 8."""
    backbone = dict(
        type='PIDNet', channels=width, ppm_channels=width, num_stem_blocks=1, num_branch_blocks=1
    )
    model = _seg(backbone, dict(type='PIDHead'), classes, **preprocessor)
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
    model = _seg(backbone, head, classes, **preprocessor)
    pixels = dict(type='OhemCrossEntropy', thres=0.9, min_kept=100)
    model['decode_head']['loss_decode'] = [pixels, pixels]
    return model


def san(width: int = 8, classes: int = 5) -> dict:
    """SAN: masks of a side network, and classes by the similarity to embeddings of their names."""
    clip, names = 4 * width, [f'thing {number}' for number in range(classes)]
    layers = dict(num_layers=2, num_heads=2, mlp_ratio=1)
    model = _seg({}, {}, classes, size=None, size_divisor=64)
    del model['backbone']
    model.update(
        type='MultimodalEncoderDecoder',
        encoder_resolution=0.5,
        image_encoder=dict(
            layers,
            type='VisionTransformer',
            img_size=(64, 64),
            patch_size=16,
            patch_pad=0,
            embed_dims=clip,
            out_origin=True,
            out_indices=(0, 1),
            output_cls_token=True,
            patch_bias=False,
            pre_norm=True,
            frozen_exclude=['pos_embed'],
        ),
        text_encoder=dict(
            layers,
            type='CLIPTextEncoder',
            vocabulary=names,
            templates=['a {}'],
            embed_dims=2 * width,
            output_dims=2 * width,
        ),
        decode_head=_side_adapter(width, clip, classes),
    )
    return model


def _side_adapter(width: int, clip: int, classes: int) -> dict:
    """The head of SAN, beside an image encoder with ``clip`` channels."""
    layers = dict(num_heads=2, mlp_ratio=1)
    return dict(
        type='SideAdapterCLIPHead',
        num_classes=classes,
        deep_supervision_idxs=[1],
        align_corners=False,
        san_cfg=dict(
            in_channels=3,
            clip_channels=clip,
            embed_dims=2 * width,
            patch_size=16,
            patch_bias=True,
            num_queries=6,
            fusion_index=[0, 1, 2],
            cfg_encoder=dict(layers, num_encode_layer=2),
            cfg_decoder=dict(
                num_heads=2,
                num_layers=1,
                embed_channels=width,
                mlp_channels=width,
                num_mlp=1,
                rescale=True,
            ),
            norm_cfg=dict(type='LN'),
        ),
        maskgen_cfg=dict(
            layers, sos_token_num=6, num_layers=1, embed_dims=clip, out_dims=2 * width
        ),
        train_cfg=dict(
            MASK_POINTS, assigner=dict(type='HungarianAssigner', match_costs=MASK_COSTS)
        ),
        loss_decode=[
            dict(
                type='CrossEntropyLoss',
                loss_name='loss_cls_ce',
                class_weight=[1.0] * classes + [0.1],
            ),
            dict(type='CrossEntropyLoss', use_sigmoid=True, loss_name='loss_mask_ce'),
            dict(type='DiceLoss', ignore_index=None, naive_dice=True, loss_name='loss_mask_dice'),
        ],
    )


def _det(
    kind: str, width: int, bbox_head: dict, start: int = 1, outs: int = 5, **kwargs: Any
) -> dict:
    stages = [width * 2**i for i in range(4)]
    convs = dict(add_extra_convs='on_output') if outs > 4 else {}
    return dict(
        _scope_='mmdet',
        type=kind,
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32
        ),
        backbone=resnet(width),
        neck=dict(
            type='FPN',
            in_channels=stages,
            out_channels=2 * width,
            start_level=start,
            num_outs=outs,
            **convs,
        ),
        **bbox_head,
        **kwargs,
    )


def _single_stage(head: dict, width: int, classes: int) -> dict:
    return dict(
        bbox_head=dict(
            num_classes=classes,
            in_channels=2 * width,
            feat_channels=2 * width,
            stacked_convs=1,
            **head,
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100,
            min_bbox_size=0,
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=10,
        ),
    )


def retinanet(width: int = 8, classes: int = 4) -> dict:
    """RetinaNet-R18, five levels."""
    head = dict(
        type='RetinaHead',
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=1,
            ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
    )
    return _det('RetinaNet', width, _single_stage(head, width, classes))


def fcos(width: int = 8, classes: int = 4) -> dict:
    """FCOS-R18, five levels."""
    head = dict(type='FCOSHead', norm_cfg=None, strides=[8, 16, 32, 64, 128])
    return _det('FCOS', width, _single_stage(head, width, classes))


def gfl(width: int = 8, classes: int = 4) -> dict:
    """GFL-R18, five levels."""
    head = dict(
        type='GFLHead',
        norm_cfg=None,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        loss_bbox=dict(type='GIoULoss'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    )
    model = _single_stage(head, width, classes)
    model['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return _det('GFL', width, model)


def atss(width: int = 8, classes: int = 4) -> dict:
    """ATSS-R18, five levels."""
    head = dict(
        type='ATSSHead',
        norm_cfg=None,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_bbox=dict(type='GIoULoss'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
    )
    model = _single_stage(head, width, classes)
    model['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return _det('ATSS', width, model)


def rtmdet(width: int = 8, classes: int = 4) -> dict:
    """The head of RTMDet on a ResNet-18 with an FPN, three levels."""
    head = dict(
        type='RTMDetSepBNHead',
        norm_cfg=dict(type='BN'),
        share_conv=True,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    )
    model = _single_stage(head, width, classes)
    model['train_cfg']['assigner'] = dict(type='DynamicSoftLabelAssigner', topk=13)
    return _det('RTMDet', width, model, outs=3)


def ld(width: int = 8, classes: int = 4, **kwargs: Any) -> dict:
    """mmdetection's own localization distillation: a GFL student with a teacher inside."""
    config, teacher = gfl(width, classes), gfl(width, classes)
    config.update(type='KnowledgeDistillationSingleStageDetector', **kwargs)
    config['teacher_config'] = dict(model={k: v for k, v in teacher.items() if k != '_scope_'})
    soft = dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)
    config['bbox_head'].update(type='LDHead', loss_ld=soft)
    return config


def _trained_by_boxes(pos: float, neg: float, low: float, share: float, add_gt: bool) -> dict:
    """Assigner and sampler of one stage of a two-stage detector."""
    return dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=pos, neg_iou_thr=neg, min_pos_iou=low),
        sampler=dict(type='RandomSampler', num=16, pos_fraction=share, add_gt_as_proposals=add_gt),
        pos_weight=-1,
    )


def _nms(threshold: float, **kwargs: Any) -> dict:
    return dict(nms=dict(type='nms', iou_threshold=threshold), **kwargs)


def faster_rcnn(width: int = 8, classes: int = 4) -> dict:
    """Faster R-CNN-R18, four levels and a pooled one."""
    coder = dict(
        type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
    )
    proposals = _nms(0.7, nms_pre=50, max_per_img=20, min_bbox_size=0)
    heads = dict(
        rpn_head=dict(
            type='RPNHead',
            in_channels=2 * width,
            feat_channels=2 * width,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64]
            ),
            bbox_coder=dict(coder, target_stds=[1.0] * 4),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=0),
                out_channels=2 * width,
                featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=2 * width,
                fc_out_channels=32,
                roi_feat_size=3,
                num_classes=classes,
                bbox_coder=coder,
                reg_class_agnostic=False,
            ),
        ),
        train_cfg=dict(
            rpn=dict(_trained_by_boxes(0.7, 0.3, 0.3, 0.5, False), allowed_border=-1),
            rpn_proposal=proposals,
            rcnn=_trained_by_boxes(0.5, 0.5, 0.5, 0.25, True),
        ),
        test_cfg=dict(rpn=proposals, rcnn=_nms(0.5, score_thr=0.05, max_per_img=10)),
    )
    return _det('FasterRCNN', width, heads, start=0)


def yolox(width: int = 16, classes: int = 4) -> dict:
    """YOLOX, as its stock config has it but narrow: ``width`` channels in its first level."""
    c = [width, 2 * width, 4 * width]
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum')
    return dict(
        _scope_='mmdet',
        type='YOLOX',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=width / 256),
        neck=dict(type='YOLOXPAFPN', in_channels=c, out_channels=c[0], num_csp_blocks=1),
        bbox_head=dict(
            type='YOLOXHead',
            num_classes=classes,
            in_channels=c[0],
            feat_channels=c[0],
            loss_cls=loss,
            loss_obj=loss,
            loss_bbox=dict(type='IoULoss', mode='square', eps=1e-16, reduction='sum'),
            loss_l1=dict(type='L1Loss', reduction='sum'),
        ),
        train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
        test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
    )


def mask_rcnn(width: int = 8, classes: int = 4) -> dict:
    """Mask R-CNN-R18: its training needs masks."""
    model = faster_rcnn(width, classes)
    roi_head = model['roi_head']
    roi_layer = dict(type='RoIAlign', output_size=4, sampling_ratio=0)
    roi_head['mask_roi_extractor'] = dict(roi_head['bbox_roi_extractor'], roi_layer=roi_layer)
    roi_head['mask_head'] = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=2 * width,
        conv_out_channels=width,
        num_classes=classes,
    )
    model['train_cfg']['rcnn']['mask_size'] = 8
    model['test_cfg']['rcnn']['mask_thr_binary'] = 0.5
    return dict(model, type='MaskRCNN')


def cascade_rcnn(width: int = 8, classes: int = 4, masks: bool = False) -> dict:
    """Cascade R-CNN-R18 of two stages, whose boxes are the same for all classes."""
    model = (mask_rcnn if masks else faster_rcnn)(width, classes)
    roi_head, stages = model['roi_head'], []
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]):
        coder = dict(roi_head['bbox_head']['bbox_coder'], target_stds=stds)
        stages.append(dict(roi_head['bbox_head'], reg_class_agnostic=True, bbox_coder=coder))
    roi_head.update(
        type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5], bbox_head=stages
    )
    model['train_cfg']['rcnn'] = [model['train_cfg']['rcnn']] * 2
    return dict(model, type='CascadeRCNN')


def _attention(width: int, **kwargs: Any) -> dict:
    return dict(embed_dims=width, dropout=0.0, **kwargs)


def _queries(kind: str, width: int, classes: int, outs: int, **kwargs: Any) -> dict:
    """What detectors with queries have in common; ``outs`` maps of the neck, of 2 * ``width``."""
    costs = [dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'), dict(type='IoUCost')]
    stages = [width * 2**i for i in range(4)]
    return dict(
        _scope_='mmdet',
        type=kind,
        num_queries=6,
        data_preprocessor=dict(type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True),
        backbone=resnet(width, out_indices=tuple(range(4))[-max(outs - 1, 1) :]),
        neck=dict(
            type='ChannelMapper',
            in_channels=stages[-max(outs - 1, 1) :],
            kernel_size=1,
            out_channels=2 * width,
            act_cfg=None,
            num_outs=outs,
        ),
        positional_encoding=dict(num_feats=width, normalize=True),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=costs)),
        test_cfg=dict(max_per_img=5),
        **kwargs,
    )


def detr(width: int = 8, classes: int = 4, queries: int = 6, embed: int | None = None) -> dict:
    """DETR-R18: one map, and a transformer, ``2 * width`` channels wide unless ``embed`` is."""
    embed = embed or 2 * width
    attention = _attention(embed, num_heads=2, batch_first=True)
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    layer = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    model = _queries(
        'DETR',
        width,
        classes,
        outs=1,
        encoder=dict(num_layers=1, layer_cfg=layer),
        decoder=dict(
            num_layers=1, layer_cfg=dict(layer, cross_attn_cfg=attention), return_intermediate=True
        ),
        bbox_head=dict(
            type='DETRHead',
            num_classes=classes,
            embed_dims=embed,
            loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
        ),
    )
    model['train_cfg']['assigner']['match_costs'].append(dict(type='ClassificationCost'))
    model.update(num_queries=queries)
    model['neck'].update(out_channels=embed)
    model['positional_encoding'].update(num_feats=embed // 2)
    return model


def dab_detr(width: int = 8, classes: int = 4, queries: int = 6) -> dict:
    """DAB-DETR-R18: one map, two layers of a decoder that takes reference points."""
    embed = 4 * width
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    attention = dict(embed_dims=embed, num_heads=2, attn_drop=0.0, proj_drop=0.0)
    model = _queries(
        'DABDETR',
        width,
        classes,
        outs=1,
        with_random_refpoints=False,
        num_patterns=0,
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=_attention(embed, num_heads=2, batch_first=True), ffn_cfg=ffn
            ),
        ),
        decoder=dict(
            num_layers=2,
            query_dim=4,
            query_scale_type='cond_elewise',
            with_modulated_hw_attn=True,
            layer_cfg=dict(
                self_attn_cfg=dict(attention, cross_attn=False),
                cross_attn_cfg=dict(attention, cross_attn=True),
                ffn_cfg=ffn,
            ),
            return_intermediate=True,
        ),
        bbox_head=dict(
            type='DABDETRHead',
            num_classes=classes,
            embed_dims=embed,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
    )
    model['num_queries'] = queries
    model['neck']['out_channels'] = embed
    model['positional_encoding'] = dict(num_feats=embed // 2, temperature=20, normalize=True)
    model['train_cfg']['assigner']['match_costs'].append(dict(type='FocalLossCost'))
    return model


def conditional_detr(width: int = 8, classes: int = 4, queries: int = 6) -> dict:
    """Conditional DETR-R18: one map, two layers; its decoder has a fixed width."""
    embed = 256
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    attention = dict(embed_dims=embed, num_heads=2, attn_drop=0.0)
    model = _queries(
        'ConditionalDETR',
        width,
        classes,
        outs=1,
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=_attention(embed, num_heads=2, batch_first=True), ffn_cfg=ffn
            ),
        ),
        decoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=dict(attention, cross_attn=False),
                cross_attn_cfg=dict(attention, cross_attn=True),
                ffn_cfg=ffn,
            ),
            return_intermediate=True,
        ),
        bbox_head=dict(
            type='ConditionalDETRHead',
            num_classes=classes,
            embed_dims=embed,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
    )
    return _wide(model, embed, queries)


def dino(width: int = 8, classes: int = 4, queries: int = 6) -> dict:
    """DINO-R18: three maps, two stages, denoising queries; mmdetection fixes their width."""
    model = deformable_detr(width, classes, queries, refine=True, two_stage=True)
    model.update(
        type='DINO',
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=4),
        ),
    )
    model['bbox_head']['type'] = 'DINOHead'
    return model


def deformable_detr(
    width: int = 8,
    classes: int = 4,
    queries: int = 6,
    refine: bool = False,
    two_stage: bool = False,
) -> dict:
    """Deformable DETR-R18: three maps, two layers; with two stages, its width is fixed."""
    embed = 256
    deformable = _attention(embed, num_levels=3, num_heads=2)
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    attention = _attention(embed, num_heads=2)
    model = _queries(
        'DeformableDETR',
        width,
        classes,
        outs=3,
        with_box_refine=refine,
        as_two_stage=two_stage,
        num_feature_levels=3,
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=deformable, ffn_cfg=ffn),
            post_norm_cfg=None,
        ),
        bbox_head=dict(
            type='DeformableDETRHead',
            num_classes=classes,
            embed_dims=embed,
            sync_cls_avg_factor=True,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
    )
    model['positional_encoding'].update(offset=0.0, temperature=20)
    return _wide(model, embed, queries)


def _wide(model: dict, embed: int, queries: int) -> dict:
    """A detector with queries of another width and number, and with focal loss."""
    model['num_queries'] = queries
    model['neck']['out_channels'] = embed
    model['positional_encoding']['num_feats'] = embed // 2
    model['train_cfg']['assigner']['match_costs'].append(dict(type='FocalLossCost'))
    return model


def _pixel_decoder(width: int, ffn: dict, points: dict) -> dict:
    """The deformable pixel decoder of Mask2Former."""
    deformable = _attention(2 * width, num_heads=2, num_levels=3, num_points=2, batch_first=True)
    return dict(
        type='MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=2),
        act_cfg=dict(type='ReLU'),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
        positional_encoding=points,
    )


def mask2former(width: int = 8, classes: int = 4, stuff: int = 0, queries: int = 5) -> dict:
    """Mask2Former-R18, for instances or panoptic: deformable pixel decoder, masked attention."""
    embed = 2 * width
    attention = _attention(embed, num_heads=2, batch_first=True)
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    points = dict(num_feats=width, normalize=True)
    split = dict(num_things_classes=classes, num_stuff_classes=stuff)
    return dict(
        _scope_='mmdet',
        type='Mask2Former',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=MEAN,
            std=STD,
            bgr_to_rgb=True,
            pad_size_divisor=32,
            pad_mask=True,
        ),
        backbone=resnet(width),
        panoptic_head=dict(
            type='Mask2FormerHead',
            in_channels=[width * 2**i for i in range(4)],
            strides=[4, 8, 16, 32],
            feat_channels=embed,
            out_channels=embed,
            num_queries=queries,
            num_transformer_feat_level=3,
            **split,
            pixel_decoder=_pixel_decoder(width, ffn, points),
            positional_encoding=points,
            transformer_decoder=dict(
                return_intermediate=True,
                num_layers=1,
                layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
            ),
            loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * (classes + stuff) + [0.1]),
            loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_dice=dict(type='DiceLoss', use_sigmoid=True, activate=True, naive_dice=True),
        ),
        panoptic_fusion_head=dict(type='MaskFormerFusionHead', **split),
        train_cfg=dict(
            **MASK_POINTS,
            assigner=dict(type='HungarianAssigner', match_costs=MASK_COSTS),
            sampler=dict(type='MaskPseudoSampler'),
        ),
        test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=5),
    )


def maskformer(width: int = 8, classes: int = 4, stuff: int = 0, queries: int = 5) -> dict:
    """MaskFormer-R18 of mmdetection."""
    model = mask2former(width, classes, stuff, queries)
    _to_maskformer(model['panoptic_head'], '')
    model['type'] = 'MaskFormer'
    costs = model['train_cfg']['assigner']['match_costs']
    model['train_cfg']['assigner']['match_costs'] = _focal(costs, '')
    return model


def _to_maskformer(head: dict, scope: str) -> None:
    """Makes a head of Mask2Former one of MaskFormer, whose layers lie in one tensor."""
    for key in ('strides', 'num_transformer_feat_level'):
        del head[key]
    head.update(
        type='MaskFormerHead',
        enforce_decoder_input_project=False,
        pixel_decoder=dict(
            type=f'{scope}PixelDecoder',
            norm_cfg=dict(type='GN', num_groups=2),
            act_cfg=dict(type='ReLU'),
        ),
        loss_mask=dict(type=f'{scope}FocalLoss', use_sigmoid=True),
    )
    head['transformer_decoder']['num_layers'] = 2


def _focal(costs: list[dict], scope: str) -> list[dict]:
    """The costs of MaskFormer."""
    focal = dict(type=f'{scope}FocalLossCost', binary_input=True)
    return [costs[0], focal, *costs[2:]]


def _as_segmentor(head: dict, width: int, classes: int) -> dict:
    """A head of mmdetection that classifies masks, in the segmentor that mmsegmentation makes."""
    model = _seg(resnet(width), {}, classes)
    model['decode_head'] = dict(head, num_classes=classes, align_corners=False)
    return model


def _in_mmdet(config: Any) -> Any:
    """A config of mmdetection with its library in front of each type that mmsegmentation has."""
    if isinstance(config, dict):
        found = {key: _in_mmdet(value) for key, value in config.items()}
        if 'Loss' in str(found.get('type')) or 'PixelDecoder' in str(found.get('type')):
            found['type'] = f'mmdet.{found["type"]}'
        return found
    return [_in_mmdet(x) for x in config] if isinstance(config, list) else config


def mask2former_segmentor(width: int = 8, classes: int = 5, queries: int = 5) -> dict:
    """Mask2Former-R18 of mmsegmentation."""
    model = mask2former(width, classes, queries=queries)
    head = _in_mmdet(model['panoptic_head'])
    costs = [{**cost, 'type': f'mmdet.{cost["type"]}'} for cost in MASK_COSTS]
    head['train_cfg'] = dict(
        MASK_POINTS,
        assigner=dict(type='mmdet.HungarianAssigner', match_costs=costs),
        sampler=dict(type='mmdet.MaskPseudoSampler'),
    )
    return _as_segmentor(head, width, classes)


def maskformer_segmentor(width: int = 8, classes: int = 5, queries: int = 5) -> dict:
    """MaskFormer-R18 of mmsegmentation."""
    model = mask2former_segmentor(width, classes, queries)
    head = model['decode_head']
    del head['num_things_classes'], head['num_stuff_classes']
    _to_maskformer(head, 'mmdet.')
    head['in_index'] = [0, 1, 2, 3]
    assigner = head['train_cfg']['assigner']
    assigner['match_costs'] = _focal(assigner['match_costs'], 'mmdet.')
    return model


def build(config: dict) -> nn.Module:
    """Builds a model as a runner would, with the scope that its dict names."""
    config = ConfigDict(config)
    with DefaultScope.overwrite_default_scope(config.pop('_scope_', None)):
        return MODELS.build(config)


def distiller(
    student: dict, teacher: dict | list, distill: dict, seed: int = 0, **kwargs: Any
) -> nn.Module:
    """A Distiller around small models; a teacher given as a model dict gets random weights.

    ``kwargs`` are other keys, such as a ``type`` that takes the place of the Distiller.
    """
    torch.manual_seed(seed)
    if isinstance(teacher, dict) and not {'config', 'tap', 'path'} & set(teacher):
        teacher = dict(config=teacher, checkpoint=None)
    config = dict(
        _scope_=student['_scope_'],
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=teacher,
        distill=distill,
    )
    return build({**config, **kwargs})


def batch(model: nn.Module, size: int = 2, seed: int = 0) -> tuple[Tensor, list]:
    """Images and labels for a model, ``size`` times a made-up one with noise of its own."""
    torch.manual_seed(seed)
    inputs, samples = example_batch(getattr(model, 'student', model), torch.device('cpu'))
    inputs = torch.rand(size, *inputs.shape[1:]) * 4 - 2
    return inputs, [samples[0].clone() for _ in range(size)]


def calls_of(module: nn.Module) -> list[tuple[tuple, dict]]:
    """A list to which each call of a module adds what it is given: positional, and by name."""
    calls: list[tuple[tuple, dict]] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    return calls


def cwd(**kwargs: Any) -> dict:
    """A channel-wise loss, for terms whose loss does not matter."""
    return dict(type='mmkd_plugin.ChannelWiseLoss', **kwargs)
