"""Valid configs of Distillers of every kind, on models that are built in milliseconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.registry import MODELS
from tests import stock_models
from tests.caches import write_cache
from tests.models.foundation.weights import stand_in
from tests.runs import DET_CLASSES, SEG_CLASSES, config
from tests.stock_models import cwd


@MODELS.register_module()
class TwoConvolutions(nn.Module):
    """A backbone with maps of stride 4 and 8."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.norm1(self.conv1(x))
        return first, self.norm2(self.conv2(first))


def segmentor(width: int) -> dict:
    model = stock_models.fcn(width, len(SEG_CLASSES))
    model['backbone'] = dict(type='mmkd_plugin.TwoConvolutions', width=width)
    model['decode_head'].update(in_channels=2 * width, in_index=1)
    return model


def detector(width: int) -> dict:
    model = stock_models.retinanet(width, len(DET_CLASSES))
    model['backbone'] = dict(type='mmkd_plugin.TwoConvolutions', width=width)
    model['neck'] = dict(
        type='FPN', in_channels=[width, 2 * width], out_channels=2 * width, num_outs=2
    )
    model['bbox_head']['anchor_generator']['strides'] = [4, 8]
    return model


def online(model: dict, **changes: Any) -> dict:
    return dict(dict(config=model, checkpoint=None, strict=True), **changes)


def distiller(student: dict, teacher: Any, distill: dict, **others: Any) -> dict:
    return dict(
        _scope_=student['_scope_'],
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=teacher,
        distill=distill,
        **others,
    )


def own(kind: str, **arguments: Any) -> dict:
    return dict(type=f'mmkd_plugin.{kind}', **arguments)


SCORES = 'decode_head.conv_seg'

LOSSES = dict(
    pixels=dict(tap=SCORES, loss=own('PixelWiseLoss', tau=1.0, sigmoid=False, loss_weight=10.0)),
    hint=dict(
        tap=['backbone.conv1', 'backbone.conv2'],
        connector=own('ConvConnector', kernel_size=3, bias=False, norm=True),
        loss=own('HintLoss', loss_weight=[1.0, 2.0]),
        schedule=dict(start=10, stop=50, ramp=5, curve='cosine', by_epoch=False),
        compile=False,
    ),
    attention=dict(student_tap='backbone', teacher_tap='backbone', loss=own('AttentionLoss', p=2)),
    pairs=dict(tap='backbone[1]', loss=own('PairWiseLoss', pool=0.5, detach_norm=True)),
    overhaul=dict(
        tap='backbone.norm2',
        norm='backbone.norm2',
        connector=own('ConvConnector', norm=True),
        loss=own('OverhaulLoss', loss_weight=1e-3),
    ),
)


def with_several_teachers() -> dict:
    return distiller(
        segmentor(4),
        [online(segmentor(8), name='large'), online(segmentor(6), name='other')],
        dict(
            rkd=dict(
                tap='backbone[0]',
                teacher='large',
                loss=own('RKDDistanceLoss', embed='positions', num_positions=16, gather=False),
            ),
            local=dict(
                tap=SCORES, teacher='other', loss=own('LocalSimilarityLoss', similarity='cosine')
            ),
        ),
    )


def with_a_self_teacher() -> dict:
    teacher = own(
        'SelfTeacher',
        tap='backbone',
        neck=own('BiFPNSelfTeacher', width=1.5, depth=1),
        head=dict(dropout_ratio=0.0),
        loss_weight=0.5,
        name='own',
    )
    return distiller(
        segmentor(4),
        teacher,
        dict(
            margin=dict(tap=SCORES, loss=own('ActivationBoundaryLoss', margin=1.0)),
            variation=dict(
                tap='backbone.conv2',
                teacher_tap='neck[1]',
                loss=own('IntraClassVariationLoss', ignore_index=255),
            ),
        ),
    )


def with_explanations() -> dict:
    explainer = own('GradCAM', scores=SCORES, max_classes=2, score_thr=0.3, seed=1)
    term = dict(tap='backbone.conv2', explainer=explainer, loss=own('ExplanationLoss'))
    return distiller(segmentor(4), online(segmentor(8)), dict(explain=term))


def of_a_detector() -> dict:
    return distiller(
        detector(4),
        online(detector(8)),
        dict(
            soft=dict(
                tap='bbox_head.retina_cls', loss=own('SoftTargetLoss', tau=2.0, sigmoid=True)
            ),
            fsp=dict(tap=['backbone.conv1', 'backbone.conv2'], loss=own('FSPLoss', pool='max')),
        ),
        task=dict(loss_weight=0.5, schedule=dict(start=0, ramp=3)),
    )


def of_a_segmentor() -> dict:
    task = dict(loss_weight=1.0, schedule=dict(start=0, by_epoch=True))
    return distiller(segmentor(4), online(segmentor(8)), LOSSES, task=task, compile=False)


def with_combined_teachers() -> dict:
    """Several teachers of one term, and a term of one of them."""
    return distiller(
        segmentor(4),
        [online(segmentor(8), name='large'), online(segmentor(6), name='other')],
        dict(
            both=dict(
                tap=SCORES, teacher=['large', 'other'], combine='confidence', loss=cwd(tau=4.0)
            ),
            one=dict(tap='backbone', teacher='other', loss=own('AttentionLoss', p=2)),
        ),
    )


def with_automatic_weights() -> dict:
    return distiller(
        segmentor(4),
        online(segmentor(8)),
        dict(
            scores=dict(tap=SCORES, loss=cwd(tau=4.0, loss_weight='auto')),
            hint=dict(
                tap='backbone.conv2',
                connector=own('ConvConnector'),
                loss=own('HintLoss', loss_weight=dict(auto=0.5)),
            ),
        ),
    )


def with_memories() -> dict:
    return distiller(
        segmentor(4),
        online(segmentor(8)),
        dict(
            memory=dict(
                tap='backbone.conv2',
                loss=own(
                    'MemoryContrastLoss', classes=3, pixels=20, regions=5, tau=0.1, draw='first'
                ),
            ),
            queue=dict(
                tap='backbone.conv2',
                connector=own('ConvConnector'),
                loss=own('TokenRelationLoss', queue=7),
            ),
        ),
    )


def with_a_foundation_model() -> dict:
    model = own(
        'FoundationModel',
        source='transformers',
        path=stand_in('transformers', 'dinov2-tiny'),
        blocks=[0, -1],
        stride=16,
    )
    loss = own('CosineHintLoss', scope='token', loss_weight=0.1)
    term = dict(student_tap=['backbone[0]', 'backbone[1]'], teacher_tap='maps', loss=loss)
    return distiller(segmentor(4), dict(config=model, checkpoint=None), dict(patches=term))


def with_images_without_labels(folder: Path) -> dict:
    """They lie in a folder, and a teacher labels them."""
    return distiller(
        segmentor(4),
        online(segmentor(8)),
        dict(cwd=dict(tap=SCORES, loss=cwd(tau=4.0))),
        unlabelled=dict(
            dataset=str(folder),
            ratio=0.5,
            only=False,
            pseudo_labels=dict(threshold=0.2, loss_weight=0.5, teacher='teacher'),
        ),
    )


def with_a_cache(data: Path, folder: Path, views: int | None = None) -> dict:
    """Writes the cache that it reads: whole images, or views of them."""
    model = distiller(
        segmentor(4), online(segmentor(8)), dict(cwd=dict(tap=SCORES, loss=cwd(tau=4)))
    )
    run = config(copy.deepcopy(model), data, folder, 1, augment=True)
    path = write_cache(run, folder / 'cache', views=views)
    teacher = own('CachedTeacher', path=path, name='stored')
    teacher.update(dict(ignore=['Mine']) if views is None else dict(views=1))
    return dict(model, teacher=teacher)
