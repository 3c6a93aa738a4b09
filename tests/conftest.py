"""Fixtures that the tests of the package and of the tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkd_plugin.inference import Inference
from tests.runs import make_data


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images, their label maps and their boxes."""
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root


@pytest.fixture(autouse=True)
def exact_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers compute as they were built, so that numbers are the same on every machine."""
    exact = Inference('fp32', False, False, False), 'as all tests have it'
    monkeypatch.setattr('mmkd_plugin.inference.best_for', lambda _: exact)
