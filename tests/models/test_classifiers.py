"""Classifiers of mmpretrain as students and as teachers, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

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


def test_a_student_learns_and_predicts() -> None:
    importlib.import_module('mmpretrain.models')
    from mmpretrain.structures import DataSample

    teacher = dict(config=classifier(16), checkpoint=None)
    settings = dict(type='mmkd_plugin.Distiller', student=classifier(8), teacher=teacher)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(settings, distill=TERMS)).train()
        assert 'could not be tried' not in model.plan
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
        samples = [DataSample().set_gt_label(number) for number in (0, 3, 1, 0)]
        data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)
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
