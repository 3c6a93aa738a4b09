"""Schedules that do not fit the length of a run are named before its first iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolyLR,
)
from mmengine.runner import Runner

from mmkd_plugin.running.schedules import CheckSchedules, Length, unfit
from tests.runs import config, train
from tests.stock_models import fcn

pytestmark = pytest.mark.usefixtures('own_globals')

RUN = Length(100, 'iterations')


def schedule(kind: Any, **settings: Any) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    return kind(optimizer, by_epoch=False, **settings)


@pytest.mark.parametrize(
    ('made', 'text'),
    [
        (
            schedule(PolyLR, end=160000),
            'comes down until 160000 iterations, and the run has 100; write end=100',
        ),
        (
            schedule(CosineAnnealingLR, T_max=200, begin=20),
            'comes down until 220 iterations, and the run has 100; write T_max=80',
        ),
        (
            schedule(LinearLR, start_factor=1, end_factor=0.1, end=200),
            'comes down until 200 iterations, and the run has 100; write end=100',
        ),
        (
            schedule(LinearLR, start_factor=0.1, end=500),
            'warms up for 500 iterations, and the run has 100, so the rate of optim_wrapper is '
            'never reached; write end=10, say',
        ),
        (
            schedule(ConstantLR, factor=0.1, end=500),
            'warms up for 500 iterations, and the run has 100, so the rate of optim_wrapper is '
            'never reached; write end=10, say',
        ),
        (
            schedule(MultiStepLR, milestones=[110, 100]),
            'has milestones=[100, 110], and the run has 100 iterations, so it changes nothing; '
            'write smaller ones',
        ),
        (
            schedule(PolyLR, begin=100, end=200),
            'begins after 100 iterations, and the run has 100, so it changes nothing; write a '
            'smaller `begin`',
        ),
    ],
)
def test_schedules_that_do_not_fit(made, text):
    assert unfit(made, RUN) == f'{type(made).__name__} {text}'


@pytest.mark.parametrize(
    'made',
    [
        schedule(PolyLR, begin=10, end=100),
        schedule(CosineAnnealingLR, T_max=50, begin=50, end=100),
        schedule(LinearLR, start_factor=0.1, end=100),
        schedule(ConstantLR, factor=1, end=500),
        schedule(MultiStepLR, milestones=[99, 200], end=300),
        schedule(MultiStepLR, milestones=[]),
        schedule(OneCycleLR, eta_max=1, total_steps=200),
    ],
)
def test_schedules_that_fit(made):
    assert unfit(made, RUN) is None


def said(runner: Runner) -> list[str]:
    lines = Path(runner.log_dir, f'{runner.timestamp}.log').read_text().splitlines()
    return [one.partition(' WARNING - ')[2] for one in lines if ' WARNING - param_sch' in one]


@pytest.mark.parametrize(
    ('by_epoch', 'schedulers', 'texts'),
    [
        (False, None, []),
        (True, None, []),
        (False, [dict(type='PolyLR', by_epoch=False)], []),
        (True, dict(type='CosineAnnealingLR', T_max=2), []),
        (
            False,
            [dict(type='MultiStepLR', milestones=[1], by_epoch=True)],
            [
                'param_scheduler[0]: MultiStepLR goes by epochs, and IterBasedTrainLoop counts '
                'none, so it changes nothing; write by_epoch=False, and its numbers in iterations'
            ],
        ),
        (True, [dict(type='MultiStepLR', milestones=[1])], []),
        (
            True,  # three iterations an epoch
            [
                dict(type='LinearLR', start_factor=0.1, end=500, by_epoch=False),
                dict(type='PolyLR', end=12, convert_to_iter_based=True),
            ],
            [
                'param_scheduler[0]: LinearLR warms up for 500 iterations, and the run has 6, so '
                'the rate of optim_wrapper is never reached; write end=2, say',
                'param_scheduler[1]: PolyLR comes down until 12 epochs, and the run has 2; write '
                'end=2',
            ],
        ),
        (False, [dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True)], []),
    ],
)
def test_a_run_says_it_before_it_starts(by_epoch, schedulers, texts, data, tmp_path):
    cfg = config(fcn(classes=3), data, tmp_path, 2, by_epoch=by_epoch)
    if schedulers is not None:
        cfg.param_scheduler = schedulers
    runner = train(cfg, CheckSchedules())
    assert said(runner) == texts
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    assert not texts or log.index(texts[-1]) < log.index('(train)')
