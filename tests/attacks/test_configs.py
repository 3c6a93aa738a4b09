"""Mistakes in a config, typed into ``tools/train.py``: one line before training, or a valid run.

Each of them runs in a process of its own. The suite tries some; ``make attacks`` tries all.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.attacks import configs
from tests.attacks.harness import call_tool, fault_of, fork
from tests.attacks.runs import changed, segmentation, written
from tests.tools.tool_runs import load_tool

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks a process with threads')

#: Every n-th attack is tried.
EVERY = int(os.environ.get('ATTACKS_EVERY', '12'))

#: Where the libraries fail in the first batch; nothing before it knows.
LATE = (
    {'model.student.decode_head.loss_decode': dict(type='ReLU')},
    {'model.student.decode_head.loss_decode.loss_weight': 'a'},
)


GROUPS = ('model.distill', 'model.teacher', 'model.student', 'train_dataloader', 'optim_wrapper')
REST = 'the rest'


def group_of(attack: configs.Attack) -> str:
    key = next(iter(attack.changes))
    return next((group for group in GROUPS if key.startswith(group)), REST)


def attacks(group: str) -> list[configs.Attack]:
    """The attacks on one part of the config, without those that are known to be late."""
    every = [a for a in configs.attacks() if a.changes not in LATE]
    return [a for a in every[::EVERY] if group_of(a) == group]


@pytest.mark.parametrize('group', [*GROUPS, REST])
def test_configs(group: str, data: Path, tmp_path: Path) -> None:
    run = segmentation(data, tmp_path / 'teacher.pth')
    main = load_tool('train').main
    faults, count = [], Counter()
    for number, attack in enumerate(attacks(group)):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = written(changed(run, attack.changes), folder / 'config.py')
        ending = fork(lambda config=config: call_tool(main, 'train', [config.name]), folder)
        fault = fault_of(ending, 'train', attack.words)
        count['held' if fault is None else 'fell short'] += 1
        if fault is not None:
            faults.append(f'{attack.changes}\n    {fault}')
        shutil.rmtree(folder / 'work_dirs', ignore_errors=True)
    assert not faults, f'{dict(count)}\n' + '\n'.join(faults)
