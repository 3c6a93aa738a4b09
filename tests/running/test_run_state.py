"""The state of a run in a checkpoint: each part that cannot be loaded is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmkd_plugin.running.kinds import unlike
from mmkd_plugin.running.run_state import wrong_parts

STATE = dict(
    meta=dict(
        epoch=0, iter=3, seed=5, mmkd_run=dict(config={}, trained=['a']), mmkd_batches_done=[1, 2]
    ),
    message_hub=dict(
        log_scalars=dict(loss=HistoryBuffer([1.0], [1])),
        runtime_info={},
        resumed_keys=dict(loss=True),
    ),
    optimizer=dict(state={0: dict(step=1)}, param_groups=[dict(params=[0], lr=0.1)]),
    param_schedulers=[dict(last_step=1)],
    ema_state_dict=dict(a=torch.zeros(1)),
)


def test_a_whole_one() -> None:
    assert wrong_parts(STATE) == []
    several = dict(first=STATE['optimizer'], second=STATE['optimizer'])
    assert wrong_parts({**STATE, 'optimizer': several}) == []


@pytest.mark.parametrize(
    ('path', 'value', 'told'),
    [
        ('meta', 5, '`meta` is 5'),
        ('meta.iter', None, '`meta.iter` is None'),
        ('meta.epoch', -1, '`meta.epoch` is -1'),
        ('meta.seed', 2**32, '`meta.seed` is 4294967296'),
        ('meta.config', 'import os', '`meta.config` is code'),
        ('meta.mmkd_run', [], '`meta.mmkd_run` is []'),
        ('meta.mmkd_run.trained', [5], '`meta.mmkd_run.trained` is [5]'),
        ('meta.mmkd_run.processes', 'two', "`meta.mmkd_run.processes` is 'two'"),
        ('meta.mmkd_batches_done', [1], '`meta.mmkd_batches_done` is [1]'),
        ('message_hub.log_scalars', None, '`message_hub.log_scalars` is None'),
        ('message_hub.resumed_keys.loss', 'x', '`message_hub.resumed_keys` is '),
        ('optimizer', {}, '`optimizer.param_groups` is None'),
        ('optimizer', 'x', "`optimizer` is 'x'"),
        ('optimizer.param_groups', [dict(lr=1)], '`optimizer.param_groups` is '),
        ('optimizer.state', [], '`optimizer.state` is []'),
        ('param_schedulers', [5], '`param_schedulers` is [5]'),
        ('state_dict', dict(a=5), '`state_dict` is '),
        ('ema_state_dict.a', 5, '`ema_state_dict` is '),
        ('mmkd_gradients', dict(a=5), '`mmkd_gradients` is '),
    ],
)
def test_a_part_of_another_kind(path: str, value: Any, told: str) -> None:
    state = holder = copy.deepcopy(STATE)
    *parents, last = path.split('.')
    for key in parents:
        holder = holder[key]
    holder[last] = value
    assert any(text.startswith(told) for text in wrong_parts(state)), wrong_parts(state)


def test_a_history_of_something_else() -> None:
    history = HistoryBuffer([1.0], [1])
    history._log_history = 'x'
    state = copy.deepcopy(STATE)
    state['message_hub']['log_scalars']['loss'] = history
    assert wrong_parts(state) == ['`message_hub.log_scalars` is a dict']


@pytest.mark.parametrize(
    ('saved', 'own', 'same'),
    [
        (1, 0.5, True),
        (torch.tensor(1.0), 0.5, True),
        (None, False, True),
        (True, None, True),
        (dict(x=1), {}, True),
        ([1, 2], (3.0, 4.0), True),
        (True, 1, False),
        ('x', 1, False),
        (float('inf'), 1, False),
        (2**70, 1, False),
        ([1], 1, False),
        (1, [1], False),
        (None, [1], False),
        (None, 1, False),
        (torch.zeros(1), None, False),
        (torch.zeros(2), 1, False),
        (torch.zeros(2), torch.ones(1, 2), True),
        (torch.tensor(float('nan')), 1, False),
        ({}, 'x', False),
    ],
)
def test_kinds_of_values(saved: Any, own: Any, same: bool) -> None:
    assert bool([*unlike(saved, own, 'here')]) is not same
