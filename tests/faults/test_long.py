"""A long run keeps nothing of its iterations: its memory does not grow."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.running.not_finite import steps_kept
from tests.faults.cases import everything
from tests.faults.tracing import needs_tracing

pytestmark = [needs_tracing, pytest.mark.usefixtures('own_globals')]

#: Iterations, and after how many all is there that a run keeps.
STEPS, WARM = (2000, 400) if os.environ.get('FAULTS') == 'all' else (20, 10)


class Tensors(Hook):
    """Counts the tensors that are alive, and the pages of memory of the process."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.alive: list[int] = []
        self.resident: list[int] = []

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter + 1 in (WARM, STEPS):
            gc.collect()
            self.alive.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
            self.resident.append(int(Path('/proc/self/statm').read_text().split()[1]))


def test_memory_does_not_grow(data: Path, tmp_path: Path) -> None:
    settings = everything(data, tmp_path)
    settings['train_cfg']['max_iters'] = STEPS
    settings['default_hooks']['checkpoint'] = settings['param_scheduler'] = None
    cfg = Config(dict(settings, work_dir=str(tmp_path / 'work'), experiment_name='long'))
    wire(cfg)
    runner, tensors = Runner.from_cfg(cfg), Tensors()
    make_resumable(runner)
    runner.register_hook(tensors)
    with steps_kept(runner):
        runner.train()
    before, after = tensors.alive
    assert after <= before
    before, after = tensors.resident
    assert STEPS < 2000 or after < 1.01 * before
