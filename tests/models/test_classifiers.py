"""Classifiers of mmpretrain as students and as teachers, where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmkd_plugin.models.necks import BiFPNClassifier, frskd_losses
from mmkd_plugin.registry import MODELS

pytest.importorskip('mmpretrain', reason='mmpretrain needs torchvision, an option of the user')
pytestmark = pytest.mark.usefixtures('counters')


def classifier(width: int, classes: int = 5) -> dict:
    return dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ClsDataPreprocessor', mean=[1.0] * 3, std=[5.0] * 3, num_classes=classes
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=width,
            stem_channels=width,
            out_indices=(0, 1, 2, 3),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=8 * width,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


def own(kind: str, **arguments: Any) -> dict:
    return dict(type=f'mmkd_plugin.{kind}', **arguments)


TERMS = {
    'KD': dict(tap='head.fc', loss=own('SoftTargetLoss', tau=4.0)),
    'DKD': dict(tap='head.fc', loss=own('DecoupledLoss')),
    'RKD': dict(tap='neck[-1]', loss=own('RKDDistanceLoss', loss_weight='auto')),
    'angles': dict(tap='neck[-1]', loss=own('RKDAngleLoss')),
    'AT': dict(tap='backbone.layer3', loss=own('AttentionLoss')),
    'FitNets': dict(tap='backbone.layer2', loss=own('HintLoss'), connector=own('ConvConnector')),
    'explanations': dict(
        tap='backbone.layer4',
        explainer=own('GradCAM', scores='head.fc'),
        loss=own('ExplanationLoss'),
    ),
}


LABELS = (0, 3, 1, 0)


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    importlib.import_module('mmpretrain.models')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def batch(model: nn.Module) -> dict:
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    samples = [DataSample().set_gt_label(number) for number in LABELS]
    return model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)


def test_a_student_learns_and_predicts() -> None:
    teacher = dict(config=classifier(16), checkpoint=None)
    settings = dict(type='mmkd_plugin.Distiller', student=classifier(8), teacher=teacher)
    model = MODELS.build(dict(settings, distill=TERMS)).train()
    assert 'could not be tried' not in model.plan
    data = batch(model)
    losses = model(**data, mode='loss')
    assert {f'distill.{name}.loss' for name in TERMS} < set(losses)
    value, _ = model.parse_losses(losses)
    value.backward()
    assert torch.isfinite(value) and all(x.grad is not None for x in model.parameters())
    alone = MODELS.build(classifier(8)).eval()
    alone.load_state_dict(model.state_dict())
    expected = alone(data['inputs'], data['data_samples'], mode='predict')
    found = model.eval()(data['inputs'], data['data_samples'], mode='predict')
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.pred_score, theirs.pred_score)


def test_a_self_teacher_gives_the_losses_of_frskd() -> None:
    """Those of ``frskd_losses``, which a loop without a runner adds up."""
    teacher = own('SelfTeacher', tap='backbone', neck=own('BiFPNSelfTeacher', depth=1))
    terms = dict(
        features=dict(tap='backbone', loss=own('AttentionLoss', loss_weight=100.0)),
        logits=dict(tap='head.fc', loss=own('SoftTargetLoss', tau=4.0, loss_weight=2.0)),
    )
    model = MODELS.build(own('Distiller', student=classifier(8), teacher=teacher, distill=terms))
    model.train()
    data = batch(model)
    losses = model(**data, mode='loss')
    by_hand, refining = MODELS.build(classifier(8)).train(), model.teachers['self_teacher'].model
    by_hand.load_state_dict(model.state_dict())
    again = BiFPNClassifier([8, 16, 32, 64], num_classes=5, depth=1)
    again.neck.load_state_dict(refining.backbone.state_dict())
    again.head.load_state_dict(refining.head.fc.state_dict())
    maps = by_hand.backbone(data['inputs'])
    logits = by_hand.head(by_hand.neck(maps))
    expected = frskd_losses(maps, logits, *again(maps), torch.tensor(LABELS))
    found = ('loss', 'self_teacher.loss', 'distill.logits.loss', 'distill.features.loss')
    assert set(losses) == set(found)
    for name, value in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(losses[name], value, msg=lambda text, n=name: f'{n}: {text}')
