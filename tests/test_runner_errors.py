"""Errors of the parts that a runner builds: one line that begins with the key."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.optim import PolyLR
from mmengine.runner import Runner
from torch import nn

from mmkd_plugin.cli import UsageError, plain_errors
from mmkd_plugin.runner_errors import runner_errors_named


def build(**settings: object) -> None:
    """Builds a run of a model that needs nothing, and begins to train it."""
    cfg = Config(dict(model=nn.Linear(1, 1), work_dir='unused', log_level='ERROR') | settings)
    with runner_errors_named(cfg):
        for key, value in settings.items():
            method = getattr(Runner, f'build_{key}')
            method(Runner.__new__(Runner), value)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('visualizer', 5, r'^visualizer: TypeError: visualizer should be'),
        (
            'log_processor',
            dict(type='LogProcesor'),
            r"^log_processor\.type: there is no 'LogProcesor'; did you mean 'Log",
        ),
        (
            'log_processor',
            dict(type='LogProcessor', window=1),
            r'^log_processor: LogProcessor has no argument `window`; did you mean `window_size`',
        ),
        ('log_processor', dict(type=5), r'^log_processor.type must be the name of a class, got 5'),
        ('log_processor', 'x', r'^log_processor: TypeError: log processor should be'),
    ],
)
def test_a_part_is_named(key, value, message, own_globals):
    with pytest.raises(ValueError, match=message):
        build(**{key: value})


@pytest.mark.parametrize('hidden', [True, False])
def test_a_schedule_that_fails_within_a_hook_is_named(hidden):
    """The fork and its upstream raise such an error anew, with or without what it comes from."""
    weight = torch.nn.Parameter(torch.zeros(1))
    schedule = PolyLR(torch.optim.SGD([weight], lr=1.0), power='a', end=5)
    cfg = Config(dict(param_scheduler=dict(type='PolyLR', power='a')))
    message = r'^param_scheduler: TypeError: unsupported operand'
    with pytest.raises(ValueError, match=message), runner_errors_named(cfg):
        try:
            schedule.step()
        except TypeError as error:
            raise TypeError(f'{error} in a hook') from (None if hidden else error)


def test_errors_of_the_training_pass():
    with pytest.raises(ZeroDivisionError), runner_errors_named(Config()):
        1 / 0  # noqa: B018


def test_of_several_processes_one_tells(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        for ending in (': error: no model', '^1$', '^1$'):
            with pytest.raises(SystemExit, match=ending), plain_errors():
                raise UsageError('no model')
        with pytest.raises(SystemExit, match='error: no teacher'), plain_errors():
            raise UsageError('no teacher')
    finally:
        dist.destroy_process_group()
