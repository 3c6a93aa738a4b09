"""The state of a run in a checkpoint, and a kept step: a run that goes on, or one line; no code.

``make attacks`` puts each wrong value in each place; the suite a few of them.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd_plugin.checkpoint import CheckpointError, read_checkpoint
from mmkd_plugin.cli import UsageError
from mmkd_plugin.running.not_finite import Step
from mmkd_plugin.training import replay
from tests.attacks.harness import call_tool, fork
from tests.attacks.runs import changed, segmentation, written
from tests.attacks.test_checkpoints import bombs
from tests.running.test_not_finite import Break, fail
from tests.runs import config
from tests.tools.tool_runs import load_tool

pytestmark = [
    pytest.mark.skipif(sys.platform != 'linux', reason='forks a process with threads'),
    pytest.mark.usefixtures('own_globals'),
]

#: Every n-th change is tried.
EVERY = int(os.environ.get('ATTACKS_EVERY', '400'))

NAN = float('nan')
WRONG = [None, 5, -1, 2**70, NAN, True, 'x', b'x', [], [None], {}, {'x': 5}, {5: None}]
WRONG += [torch.zeros(1), torch.full((2, 2), NAN), 'a/../../b', {'x': [[[]]]}]


@pytest.fixture(scope='module')
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A config, and what a checkpoint between two steps holds, with averaged weights."""
    folder = tmp_path_factory.mktemp('run')
    settings = changed(
        segmentation(data, folder / 'teacher.pth'),
        {
            'train_cfg.max_iters': 3,
            'optim_wrapper.accumulative_counts': 2,
            'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
            'default_hooks.checkpoint.interval': 1,
        },
    )
    file = written(settings, folder / 'config.py')
    main = load_tool('train').main
    ending = fork(lambda: call_tool(main, 'train', [file, '--work-dir', folder / 'work']), folder)
    assert ending.status == 0, ending.log
    return file, torch.load(folder / 'work' / 'iter_1.pth', weights_only=False)


@pytest.fixture(scope='module')
def step(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of a kept step, and what it holds."""
    folder = tmp_path_factory.mktemp('step')
    model = segmentation(data, folder / 'teacher.pth')['model']
    fail(config(model, data, folder / 'work', 2), Break('backbone.conv2.weight', 3e38, 0))
    kept = folder / 'work' / 'nan_0'
    return kept, torch.load(kept / 'step.pth', weights_only=False)


class Attribute(str):
    """An attribute of an object, in a path."""


def inside(content: Any) -> list[tuple[Any, Any]]:
    """What a container or an object holds, by its keys, places and attributes."""
    items = [*content.items()] if isinstance(content, dict) else []
    items = [*enumerate(content)] if isinstance(content, (list, tuple)) else items
    kept = {} if torch.is_tensor(content) else dict(getattr(content, '__dict__', {}))
    kept.pop('statistics_methods', None)  # of a history, which writes its own whatever is there
    return items + [(Attribute(key), value) for key, value in kept.items()]


def places(content: Any, path: tuple = (), deepest: float = math.inf) -> Iterator[tuple]:
    """The places in what a file holds; with a limit of depth, of those that are alike a few."""
    if path:
        yield path
    if len(path) == deepest:
        return
    items = inside(content)
    if deepest < math.inf:
        tensors = isinstance(content, dict) and all(map(torch.is_tensor, content.values()))
        items = [one for one in items if not isinstance(one[0], Attribute)]
        items = items[: 2 if tensors else 12]
    for key, inner in items:
        yield from places(inner, (*path, key), deepest)


def put(content: Any, path: tuple, value: Any) -> Any:
    """A copy with another value in a place."""
    key = path[0]
    inner = getattr(content, key) if isinstance(key, Attribute) else content[key]
    inner = put(inner, path[1:], value) if len(path) > 1 else value
    if isinstance(content, tuple):
        return (*content[:key], inner, *content[key + 1 :])
    content = copy.copy(content)
    if isinstance(key, Attribute):
        setattr(content, key, inner)
    else:
        content[key] = inner
    return content


def tried(content: Any) -> list[tuple[tuple, Any]]:
    """The changes that are tried."""
    every = [*itertools.product(places(content, deepest=4), WRONG)]
    random.Random(0).shuffle(every)
    return every[::EVERY]


def test_a_checkpoint_with_something_else_in_one_place(run: tuple, tmp_path: Path) -> None:
    typed, whole = run
    main, faults = load_tool('train').main, []
    for number, (path, value) in enumerate(tried(whole)):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = folder / 'changed.pth'
        torch.save(put(whole, path, value), file)
        arguments = [typed, '--work-dir', folder / 'work', '--resume', file]
        ending = fork(lambda typed=arguments: call_tool(main, 'train', typed), folder)
        line = ending.message
        if ending.status == 0:
            fault = 'NaN' if 'loss: nan' in ending.log else None
        elif ending.raw or not line.startswith('train.py: error: '):
            fault = f'raw: {line}'
        else:
            fault = None if file.name in line else f'names no file: {line}'
        faults += [f'{path} is {value!r}\n    {fault}'] if fault else []
        file.unlink()
    assert not faults, '\n'.join(faults)


def test_a_step_with_something_else_in_one_place(step: tuple, tmp_path: Path) -> None:
    folder, whole = step
    faults = []
    for path, value in tried(whole):
        torch.save(put(whole, path, value), folder / 'step.pth')
        try:
            replay(str(folder))
        except (CheckpointError, UsageError) as error:
            fault = None if str(folder) in str(error) else f'names no file: {error}'
        except Exception as error:
            fault = f'raw {type(error).__name__}: {error}'
        else:
            fault = None
        faults += [f'{path} is {value!r}\n    {fault}'] if fault else []
    assert not faults, '\n'.join(faults)


def test_code_in_all_places_of_a_checkpoint(run: tuple, tmp_path: Path) -> None:
    """Also where connectors, memories and the history of a run lie."""
    file, canary = tmp_path / 'x.pth', tmp_path / 'canary'
    kinds, every = itertools.cycle(bombs().values()), [*places(run[1])]
    beside = ('state_dict', Attribute('_metadata'), '', 'mmkd', 'state')
    assert any(path[:5] == beside and len(path) > 5 for path in every)
    assert ('message_hub', 'log_scalars', 'train/loss', Attribute('_log_history')) in every
    for path, bomb in zip(every, kinds):
        torch.save(put(run[1], path, bomb(canary)), file)
        with pytest.raises(CheckpointError):
            read_checkpoint(file)
        assert not canary.exists(), path


def test_code_in_all_places_of_a_step(step: tuple, tmp_path: Path) -> None:
    folder, canary = step[0], tmp_path / 'canary'
    kinds = itertools.cycle(bombs().values())
    for path, bomb in zip(places(step[1]), kinds):
        torch.save(put(step[1], path, bomb(canary)), folder / 'step.pth')
        with pytest.raises(CheckpointError):
            Step(folder)
        assert not canary.exists(), path
