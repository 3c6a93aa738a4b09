"""Detectors that ask a decoder with queries."""

from __future__ import annotations

from typing import Any

from tests.stock_models.pieces import MEAN, STD, resnet


def attention_cfg(width: int, **kwargs: Any) -> dict:
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
    attention = attention_cfg(embed, num_heads=2, batch_first=True)
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
                self_attn_cfg=attention_cfg(embed, num_heads=2, batch_first=True), ffn_cfg=ffn
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
                self_attn_cfg=attention_cfg(embed, num_heads=2, batch_first=True), ffn_cfg=ffn
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
    deformable = attention_cfg(embed, num_levels=3, num_heads=2)
    ffn = dict(embed_dims=embed, feedforward_channels=embed, ffn_drop=0.0)
    attention = attention_cfg(embed, num_heads=2)
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
