"""``tools/report.py``: a page of one run, or of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.runs import distilled, row, scored, session
from tests.tools.tool_runs import start_tool


@pytest.fixture
def work_dirs(tmp_path: Path) -> list[Path]:
    rows = [row(10), scored(10, 40.0)]
    return [
        session(tmp_path / 'run', [*rows, row(20), scored(20, 50.0)], distilled()),
        session(tmp_path / 'alone', rows),
    ]


def test_as_a_user_runs_it(work_dirs: list[Path]) -> None:
    printed = start_tool('report', 'run', 'alone', '--teacher', 60, cwd=work_dirs[0].parent)
    assert printed.strip().endswith('run/report.html')
    text = (work_dirs[0] / 'report.html').read_text(encoding='utf-8')
    assert '<td>+10.00</td><td>50%</td>' in text and '<title>2 runs</title>' in text


def test_another_file(call_tool, work_dirs: list[Path], tmp_path: Path) -> None:
    call_tool('report', work_dirs[1], '--out', tmp_path / 'new/page.html')
    assert '<title>alone</title>' in (tmp_path / 'new/page.html').read_text(encoding='utf-8')


def test_what_it_refuses(fails, work_dirs: list[Path], tmp_path: Path) -> None:
    assert 'is not the work dir of a run' in fails('report', tmp_path / 'run/20260101_000000')
    (tmp_path / 'page.html').write_text('mine')
    refused = fails('report', work_dirs[0], '--out', tmp_path / 'page.html')
    assert 'is no report of ours; take another --out' in refused
    assert (tmp_path / 'page.html').read_text() == 'mine'
