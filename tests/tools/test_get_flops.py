"""``tools/analysis_tools/get_flops.py``, and stock tools of analysis on a distilled run."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from mmengine.model import BaseDataPreprocessor, BaseModel

from tests.pages import ROOT, blocks_of
from tests.runs import needs_ops
from tests.tools.tool_runs import load_tool

TOOL = 'analysis_tools/get_flops'


def counts(printed: str) -> dict[str, list[str]]:
    """The numbers of each model."""
    rows = [line.strip('│ ').split('│') for line in printed.splitlines() if line.startswith('│')]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}


def test_as_the_page_shows_it(call_tool) -> None:
    page = ROOT / 'docs' / 'analysis.md'
    command, shown, *_ = blocks_of(page)
    printed = call_tool(TOOL, *shlex.split(command.text)[2:])
    assert printed == shown.text
    alone = 'mmkd::digit_scenes/fpn_r18-w16_1k_digit-scenes-128x128.py'
    found = counts(call_tool(TOOL, alone, '--shape', 128, 128))
    assert found['model'] == counts(printed)['student']


def test_a_wrong_size(fails) -> None:
    assert '--shape takes one or two numbers' in fails(TOOL, 'x.py', '--shape', 0)


@needs_ops
def test_a_detector(call_tool, detection: Path) -> None:
    found = counts(call_tool(TOOL, detection / 'distilled.py', '--shape', 64))
    assert found['student'][0] == 'RetinaNet' and found['teacher'][-1] == '1.0× / 1.0×'


def test_a_convolution_by_hand() -> None:
    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__(BaseDataPreprocessor())
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.conv(inputs)

    size = (4, 6)
    parameters, operations = load_tool(TOOL).complexity(Model(), size)
    assert parameters == 3 * 5 * 9 and operations == parameters * size[0] * size[1]


def stock(library: str, name: str) -> Path:
    """A stock tool of analysis, as the library installs it."""
    package = Path(pytest.importorskip(library).__file__).parent
    file = package / '.mim/tools/analysis_tools' / name
    if not file.is_file():
        pytest.skip(f'{library} is not installed from a wheel')
    return file


def run_stock(tool: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, words)])
    runpy.run_path(str(tool), run_name='__main__')


def test_the_stock_count_takes_the_student(segmentation: Path, monkeypatch, capsys) -> None:
    tool = stock('mmseg', 'get_flops.py')
    try:
        run_stock(tool, monkeypatch, segmentation / 'student.py', '--shape', 64, 64)
    except ValueError as error:
        if 'cannot be both set' not in str(error):
            raise
        pytest.skip('mmseg 1.2.2 calls mmengine 0.10.7 in a way that it refuses, for any config')
    assert 'Flops: ' in capsys.readouterr().out


@needs_ops
def test_the_stock_plot_has_the_terms(trained_detector: Path, tmp_path: Path, monkeypatch) -> None:
    plt.switch_backend('agg')
    (log,) = trained_detector.glob('*/vis_data/scalars.json')
    tool = stock('mmdet', 'analyze_logs.py')
    seaborn = 'seaborn' in tool.read_text()
    if seaborn:
        pytest.importorskip('seaborn')
    words = ['plot_curve', log, '--keys', 'distill.cwd.loss', 'distill.cwd.share']
    words += ['--out', tmp_path / 'terms.png', *([] if seaborn else ['--style', 'fast'])]
    run_stock(tool, monkeypatch, *words)
    assert (tmp_path / 'terms.png').stat().st_size > 5_000
