"""The page holds all of a run, opens in a browser, and takes the place of no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkd_plugin.cli import UsageError
from mmkd_plugin.report import read_run, write_report
from mmkd_plugin.report.curves import Plot, svg
from tests.browser import check_in_browser, needs_browser
from tests.report.runs import distilled, row, scored, session
from tests.report.test_checks import GOOD, SCORES

FACTS = dict(
    command=['python', 'tools/train.py', '--resume', 'iter_4.pth', 'a b.py', '--resume'],
    plan='┏━━━┓\n┃<cwd>┃' + 'long ' * 60,
    seed=3,
    parts=dict(teachers=1.0, student=3.0),
    peak_bytes=3 * 2**20,
    agreement=[
        dict(teacher='large', images=32, shares=dict(found=61.25, confirmed=None)),
        dict(teacher='self', problem='it has no model that predicts'),
    ],
)


@pytest.fixture(scope='module')
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that compares a distilled run with its student alone."""
    root = tmp_path_factory.mktemp('report')
    alone = session(root / 'alone', [row(10), scored(10, 40.0), row(20), scored(20, 44.0)])
    run = session(root / '<run>', GOOD + SCORES, distilled(), facts=FACTS)
    return write_report([read_run(run), read_run(alone)], root / 'report.html', teacher=60.0)


def test_what_it_says(page: Path) -> None:
    text = page.read_text(encoding='utf-8')
    for wanted in (
        '&lt;run&gt;', '<td>50.60</td>', '<td>44.00</td>', '<td>60.00</td>', '<td>+6.60</td>',
        '<td>41%</td>', '┃&lt;cwd&gt;┃', 'python tools/train.py &#x27;a b.py&#x27;</dd>',
        'large</dt><dd>61.2 % of the teacher&#x27;s boxes are the student&#x27;s too (validation',
        'self</dt><dd>not measured: it has no model that predicts<',
        'teachers 25%, student 75%', '3 MiB at most', 'seed</dt><dd>3', 'teacher.pth',
    ):  # fmt: skip
        assert wanted in text, wanted
    assert '<run>' not in text and text.count('<svg') == 4
    assert 'http-equiv' not in text and 'src="http' not in text and '<script' not in text


@needs_browser
@pytest.mark.parametrize(('width', 'dark'), [(1280, False), (390, True)])
def test_in_a_browser(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    check_in_browser(page, tmp_path, width, dark)


def test_it_is_written_again_and_nothing_else_is(tmp_path: Path) -> None:
    run = read_run(session(tmp_path / 'run', [row(1), row(2)]))
    write_report([run], tmp_path / 'a.html')
    write_report([run], tmp_path / 'a.html')
    (tmp_path / 'b.html').write_text('mine')
    with pytest.raises(UsageError, match='is no report of ours'):
        write_report([run], tmp_path / 'b.html')
    assert (tmp_path / 'b.html').read_text() == 'mine'


def test_curves_take_the_colour_of_the_page():
    text = svg(Plot('a', dict(x=([1, 2], [1.0, 2.0])), dict(teacher=3.0)))
    assert text.startswith('<svg') and 'currentColor' in text and '#010203' not in text
    assert 'teacher' in text and 'width=' not in text.partition('>')[0]


@pytest.mark.parametrize('values', [[0.0, 1.0], [float('nan'), 1.0], [1.0], [1.0, 1e6]])
def test_curves_of_any_values(values: list[float]) -> None:
    assert '<svg' in svg(Plot('a', dict(x=(range(len(values)), values)), log=True))
