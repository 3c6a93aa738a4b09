"""A GPU for these tests; without one they are skipped."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if 'tests/gpu/' in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason='there is no GPU'))


@pytest.fixture(scope='session')
def gpu() -> torch.device:
    """The first GPU."""
    return torch.device('cuda', 0)
