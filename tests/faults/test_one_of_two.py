"""One of two processes is killed: the other ends and says so, and the run goes on.

The suite kills the second, ``make test-faults`` each of them.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmkd_plugin.cli import plain_errors
from tests import ddp
from tests.faults.cases import in_two_processes, newest, trained
from tests.faults.test_faults import ASKED
from tests.faults.tracing import needs_tracing
from tests.runs import assert_same

pytestmark = [needs_tracing, pytest.mark.usefixtures('own_globals')]


@HOOKS.register_module()
class Die(Hook):
    """Kills one process of a run, as a system does whose memory is full."""

    def __init__(self, rank: int, at: int) -> None:
        self.rank, self.at = rank, at

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter == self.at and get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def test_the_other_ends_and_the_run_goes_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder, work = in_two_processes(tmp_path, data)
    assert ddp.endings(work) == [0, 0]
    expected = trained(folder)
    for rank in (0, 1) if ASKED else (1,):
        shutil.rmtree(folder)
        capfd.readouterr()

        def cut(here: int, rank: int = rank) -> None:
            with plain_errors():
                work(here, dict(type='Die', rank=rank, at=4))

        ended = ddp.endings(cut)
        assert ended == [1 if one != rank else -signal.SIGKILL for one in (0, 1)]
        assert 'error: another process of this run has ended' in capfd.readouterr().err
        assert newest(folder) == 3
        assert ddp.endings(work) == [0, 0]
        assert_same(trained(folder), expected)
