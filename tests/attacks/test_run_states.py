"""States of a run in a checkpoint, one place of them changed: a run that goes on, or one line.

``make attacks`` tries each value in each place; the suite a few of them.
"""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attacks.harness import Ending, call_tool, fork
from tests.attacks.runs import segmentation, written
from tests.tools.tool_runs import load_tool

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks a process with threads')

#: Every n-th change is tried.
EVERY = int(os.environ.get('ATTACKS_EVERY', '30'))

WRONG = [None, 5, -1, 2**70, float('nan'), True, 'x', b'x', [], [None], {}, {'x': 5}, {5: None}]
WRONG += [torch.zeros(1), torch.full((2, 2), float('nan')), 'a/../../b', {'x': [[[]]]}]

Path_ = tuple[Any, ...]


@pytest.fixture(scope='module')
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and a checkpoint between two steps, with averaged weights and gradients."""
    folder = tmp_path_factory.mktemp('run')
    settings = segmentation(data, folder / 'teacher.pth')
    settings['train_cfg']['max_iters'] = 3
    settings['optim_wrapper']['accumulative_counts'] = 2
    settings['custom_hooks'] = [dict(type='EMAHook', momentum=0.1)]
    settings['default_hooks']['checkpoint']['interval'] = 1
    config = written(settings, folder / 'config.py')
    main = load_tool('train').main
    ending = fork(lambda: call_tool(main, 'train', [config, '--work-dir', folder / 'work']), folder)
    assert ending.status == 0, ending.log
    return config, folder / 'work' / 'iter_1.pth'


def places(content: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The places in the state of a run, but for single weights and averages of many values."""
    if path:
        yield path
    if len(path) == 4 or path[-1:] in (('state_dict',), ('ema_state_dict',), ('cfg',)):
        return
    items = content.items() if isinstance(content, dict) else ()
    items = enumerate(content) if isinstance(content, list) else items
    for key, inner in [*items][:12]:
        yield from places(inner, (*path, key))


def changed(content: dict, path: Path_, value: Any) -> dict:
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return content


def fault_of(ending: Ending, name: str) -> str | None:
    """What is wrong with how a run has ended, None if it went on or was refused in a line."""
    if ending.status == 0:
        return 'NaN' if 'loss: nan' in ending.log else None
    line = ending.message
    if ending.raw or not line.startswith('train.py: error: '):
        return f'raw: {line}'
    return None if name in line else f'names no file: {line}'


def test_one_place_is_something_else(run: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = run
    whole = torch.load(checkpoint, weights_only=False)
    changes = [(path, value) for path in places(whole) for value in WRONG]
    random.Random(0).shuffle(changes)
    main, faults = load_tool('train').main, []
    for number, (path, value) in enumerate(changes[::EVERY]):
        folder = tmp_path / str(number)
        file = folder / 'changed.pth'
        folder.mkdir()
        torch.save(changed(whole, path, value), file)
        typed = [config, '--work-dir', folder / 'work', '--resume', file]
        fault = fault_of(
            fork(lambda typed=typed: call_tool(main, 'train', typed), folder), file.name
        )
        file.unlink()
        faults += [f'{path} is {value!r}\n    {fault}'] if fault else []
    assert not faults, f'{len(faults)} of {len(changes[::EVERY])}:\n' + '\n'.join(faults)
