"""Fixtures that the tests of the package and of the tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import make_data


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images, their label maps and their boxes."""
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root
