"""Detectors that classify boxes: dense ones, and those with proposals."""

from __future__ import annotations

from typing import Any

from tests.stock_models.pieces import MEAN, STD, resnet


def detector(
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
    return detector('RetinaNet', width, _single_stage(head, width, classes))


def fcos(width: int = 8, classes: int = 4) -> dict:
    """FCOS-R18, five levels."""
    head = dict(type='FCOSHead', norm_cfg=None, strides=[8, 16, 32, 64, 128])
    return detector('FCOS', width, _single_stage(head, width, classes))


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
    return detector('GFL', width, model)


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
    return detector('ATSS', width, model)


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
    return detector('RTMDet', width, model, outs=3)


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
    return detector('FasterRCNN', width, heads, start=0)


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
