"""Models that classify masks, of both libraries."""

from __future__ import annotations

from typing import Any

from tests.stock_models.pieces import MASK_COSTS, MASK_POINTS, MEAN, STD, resnet
from tests.stock_models.queries import attention_cfg
from tests.stock_models.segmentors import segmentor


def san(width: int = 8, classes: int = 5) -> dict:
    """SAN: masks of a side network, and classes by the similarity to embeddings of their names."""
    clip, names = 4 * width, [f'thing {number}' for number in range(classes)]
    layers = dict(num_layers=2, num_heads=2, mlp_ratio=1)
    model = segmentor({}, {}, classes, size=None, size_divisor=64)
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


def _pixel_decoder(width: int, ffn: dict, points: dict) -> dict:
    """The deformable pixel decoder of Mask2Former."""
    deformable = attention_cfg(2 * width, num_heads=2, num_levels=3, num_points=2, batch_first=True)
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
    attention = attention_cfg(embed, num_heads=2, batch_first=True)
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
    model = segmentor(resnet(width), {}, classes)
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
