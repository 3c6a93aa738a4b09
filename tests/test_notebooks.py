"""The notebooks run from top to bottom, with a few iterations in place of many."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pages import ROOT

NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
FEW = 2
"""Iterations of a training in the tests."""


def cells_of(notebook: Path, kind: str = 'code') -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text('utf-8'))['cells']
    return [cell for cell in cells if cell['cell_type'] == kind]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_globals: None) -> Iterator[Any]:
    """IPython in this process: the libraries need not be imported anew for each notebook."""
    pytest.importorskip('IPython')
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib import pyplot as plt
    from traitlets.config import Config

    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend('agg')
    shell = InteractiveShell.instance(config=Config(HistoryManager=dict(enabled=False)))
    yield shell
    InteractiveShell.clear_instance()
    plt.close('all')


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(notebook: Path, shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('sklearn')
    errors: list[BaseException] = []  # a program behind %run that ends with an error raises nothing
    show = shell.showtraceback

    def kept(exc_tuple: Any = None, **options: Any) -> None:
        import sys

        errors.append((exc_tuple or sys.exc_info())[1])
        show(exc_tuple, **options)

    monkeypatch.setattr(shell, 'showtraceback', kept)
    for cell in cells_of(notebook):
        source = re.sub(r'^ITERATIONS = \d+$', f'ITERATIONS = {FEW}', ''.join(cell['source']))
        shell.run_cell(source, store_history=False)
        assert not errors, f'{errors[0]!r} in:\n{source}'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    for cell in cells_of(notebook):
        assert not cell['outputs'] and cell['execution_count'] is None
