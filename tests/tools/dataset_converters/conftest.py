"""Running a converter in this process, and where the real data sets are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.tool_runs import load_tool

ROOT = Path(__file__).parents[3]
REAL = Path(os.environ.get('MMKD_DATA', ROOT.parent / 'shared' / 'data'))


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a converter in this process."""

    def call(name: str, *args: object) -> None:
        tool = load_tool(f'dataset_converters/{name}')
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        tool.main()

    return call


@pytest.fixture
def refuses(convert: Callable[..., None]) -> Callable[..., str]:
    """Runs a converter with something wrong; returns the one line with which it ends."""

    def call(name: str, *args: object) -> str:
        with pytest.raises(SystemExit) as caught:
            convert(name, *args)
        message = str(caught.value)
        assert message.startswith(f'{name}.py: error: ') and '\n' not in message
        return message

    return call


def real(name: str) -> Path:
    """The folder of a real data set; skips the test where there is none."""
    if not (REAL / name).is_dir():
        pytest.skip(f'MMKD_DATA names no folder with {name}')
    return REAL / name


def contents(folder: Path) -> dict[str, bytes]:
    """The content of each file below a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }
