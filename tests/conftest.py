"""Fixtures that the tests of the package and of the tools share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import mmengine.config.config
import pytest
import torch
import torch.utils.data._utils
import yapf.yapflib.yapf_api
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmkd_plugin.stack import safe_loading
from mmkd_plugin.teachers import inference
from mmkd_plugin.teachers.inference import Inference
from tests.runs import make_data

#: Torch before 2.2 lacks a few things on a CPU, and traces less.
OLD_TORCH = torch.__version__.startswith(('2.0', '2.1.'))

needs_one_graph = pytest.mark.skipif(OLD_TORCH, reason='this torch compiles no loss in one graph')


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Skips a test that calculates in float16 where an old torch cannot."""
    try:
        return (yield)
    except (RuntimeError, ValueError) as error:  # ours say which teacher it was
        told = str(error)
        if OLD_TORCH and ("for 'Half'" in told or 'AutocastCPU only support Bfloat16' in told):
            pytest.skip(f'this torch has less float16 on a CPU: {told}')
        raise


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images, their label maps and their boxes."""
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root


@pytest.fixture
def own_globals() -> Iterator[None]:
    """Leaves no logger, message hub or default scope of a run behind."""
    kinds = (MMLogger, MessageHub, Visualizer, DefaultScope)
    before = [set(kind._instance_dict) for kind in kinds]
    with safe_loading():
        yield
    for kind, names in zip(kinds, before, strict=True):
        for name in set(kind._instance_dict) - names:
            kind._instance_dict.pop(name)


@pytest.fixture
def counters() -> Iterator[MessageHub]:
    """A message hub for this test alone, as each run has one; schedules follow its counters."""
    hub = MessageHub.get_instance(f'test-{len(MessageHub._instance_dict)}')
    yield hub
    MessageHub._instance_dict.pop(hub.instance_name)


class Log(logging.Handler):
    """Keeps what is logged for users: information, warnings and errors.

    Attributes:
        records (list[logging.LogRecord]): All of it, in order.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        """The texts of all records."""
        return [record.getMessage() for record in self.records]

    @property
    def warnings(self) -> list[str]:
        """The texts of those that are warnings."""
        return [r.getMessage() for r in self.records if r.levelno == logging.WARNING]


@pytest.fixture
def log() -> Iterator[Log]:
    """What mmengine's current logger is given. A run makes a logger of its own and a file of it."""
    logger, kept = MMLogger.get_current_instance(), Log()
    logger.addHandler(kept)
    yield kept
    logger.removeHandler(kept)


@pytest.fixture(scope='session', autouse=True)
def exact_teachers() -> Iterator[None]:
    """Teachers compute as they were built, so that numbers are the same on every machine."""
    exact = Inference('fp32', False, False, False), 'as all tests have it'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, 'best_for', lambda _: exact)
        yield


@pytest.fixture(scope='session', autouse=True)
def forks_of_one_thread() -> None:
    """The threads that this process has do not live on in its forks, which would wait for them."""
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@pytest.fixture(scope='session', autouse=True)
def quick_runs() -> Iterator[None]:
    """Leaves out what takes longer than most runs of the tests, and is not of this package.

    mmengine lays a config out five times, and collects garbage for each data set; torch gives each
    idle worker of a finished run five seconds. Each tool has a test in a Python of its own, where
    nothing is left out.
    """
    gc.collect()
    gc.freeze()  # a collection searches what comes from now on
    with pytest.MonkeyPatch.context() as patch:
        for module in (yapf.yapflib.yapf_api, mmengine.config.config):  # as either stack imports it
            patch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)
        patch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.05)
        yield
    gc.unfreeze()
