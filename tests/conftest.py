"""Fixtures that the tests of the package and of the tools share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import mmengine.config.config
import pytest
import yapf.yapflib.yapf_api
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmkd_plugin.stack import safe_loading
from mmkd_plugin.teachers import inference
from mmkd_plugin.teachers.inference import Inference
from tests.runs import make_data


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
def plain_configs() -> Iterator[None]:
    """Configs are written without line breaks: yapf takes longer than most runs of the tests.

    Each tool has a test in a Python of its own, with yapf.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (yapf.yapflib.yapf_api, mmengine.config.config):  # by version of mmengine
            patch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)
        yield
