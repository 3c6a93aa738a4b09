"""Learning rates of parts of the student: those that it would have alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from tests import stock_models
from tests.runs import SEG_CLASSES
from tests.test_runner import learning, student, teacher

pytestmark = pytest.mark.usefixtures('own_globals')


def distilled(scope: str = 'mmseg', model: dict | None = None, **taps: Any) -> dict:
    """The dict of a Distiller whose term needs a connector."""
    return dict(
        _scope_=scope,
        type='mmkd_plugin.Distiller',
        student=model or student(scope),
        teacher=dict(config=teacher(scope), checkpoint=None),
        distill=dict(cwd=dict(loss=stock_models.cwd(tau=2), **taps)),
    )


def groups(model: dict, wrapper: dict) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by its name in the student."""
    built = stock_models.build(model)
    with DefaultScope.overwrite_default_scope(model['_scope_']):
        optimizer = build_optim_wrapper(built, wrapper).optimizer
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }


def assert_same_groups(alone: dict, ours: dict) -> None:
    terms = {name: ours.pop(name) for name in list(ours) if name.startswith('distill.')}
    assert ours == alone
    assert len(set(alone.values())) > 1 and len(terms) == 2
    assert {lr for lr, _ in terms.values()} == {1.0}  # connectors learn at the base rate


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_learning_rates_by_keys(scope):
    keys = {'backbone': dict(lr_mult=0.1, decay_mult=0.9), 'backbone.layer4': dict(lr_mult=0.5)}
    wrapper = dict(
        optimizer=dict(type='SGD', lr=1.0, weight_decay=0.01),
        paramwise_cfg=dict(custom_keys=keys, norm_decay_mult=0.0, bias_lr_mult=1.0),
    )
    tap = 'decode_head.bottleneck' if scope == 'mmseg' else 'neck[0]'
    assert_same_groups(groups(student(scope), wrapper), groups(distilled(scope, tap=tap), wrapper))


class ConvNeXt(torch.nn.Module):
    """The names of a ConvNeXt's parts, on which alone layer-wise learning rates depend."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [width * 2**i for i in range(4)]
        self.downsample_layers = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 2, 2 if i > 3 else 4)
            for i, o in zip([3, *sizes[:-1]], sizes, strict=True)
        )
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(*(torch.nn.Conv2d(size, size, 1) for _ in range(2)))
            for size in sizes
        )

    def forward(self, x: torch.Tensor) -> tuple:
        outputs = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            outputs.append(x := stage(downsample(x)))
        return tuple(outputs)


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_learning_rates_by_layers_of_convnext(scope, decay_type):
    wrapper = dict(
        constructor='LearningRateDecayOptimizerConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(decay_rate=0.8, decay_type=decay_type, num_layers=6),
    )
    model = student(scope, backbone=dict(type=ConvNeXt))
    tap = 'decode_head.bottleneck' if scope == 'mmseg' else 'neck[0]'
    alone = groups(model, wrapper)
    assert len({lr for lr, _ in alone.values()}) > 3
    assert_same_groups(alone, groups(distilled(scope, model=model, tap=tap), wrapper))


def test_learning_rates_by_layers_of_beit():
    model = stock_models.beit(classes=len(SEG_CLASSES))
    wrapper = dict(
        constructor='LayerDecayOptimizerConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(num_layers=3, layer_decay_rate=0.65),
    )
    alone = groups(model, copy.deepcopy(wrapper))
    assert len({lr for lr, _ in alone.values()}) == 5
    ours = distilled(model=model, student_tap='backbone[2]', teacher_tap='backbone[3]')
    assert_same_groups(alone, groups(ours, copy.deepcopy(wrapper)))


def test_modules_of_losses_take_settings_of_parameters():
    found = groups(
        learning(distilled),
        dict(
            optimizer=dict(type='SGD', lr=1.0),
            paramwise_cfg=dict(custom_keys={'distill.masked.loss': dict(lr_mult=0.5)}),
        ),
    )
    own = {name: lr for name, (lr, _) in found.items() if name.startswith('distill.')}
    assert {n for n, lr in own.items() if lr == 0.5} == {
        n for n in own if 'distill.masked.loss' in n
    }
    assert any(lr == 1 for lr in own.values())
