"""The site of the documentation: it builds without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip('myst_nb')
    pytest.importorskip('sphinxcontrib.mermaid')
    pytest.importorskip('furo')
    from sphinx.cmd.build import build_main

    warnings = tmp_path / 'warnings.txt'
    options = ['-q', '-W', '--keep-going', '-b', 'dummy', '-w', str(warnings)]
    code = build_main([*options, '-c', str(ROOT / 'docs'), str(ROOT), str(tmp_path / 'site')])
    assert code == 0, warnings.read_text('utf-8')
