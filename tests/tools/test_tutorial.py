"""The configs of the tutorial distil, on pictures and models of a small size."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.pages import ROOT, blocks_of
from tests.tools.tool_runs import save_random_weights

SMALLER = {
    '(256, 256)': '(64, 64)',
    'depth=50': 'depth=34',
    '[256, 512, 1024, 2048]': '[64, 128, 256, 512]',
}


def test_the_pair_of_the_tutorial_fits(
    call_tool: Callable[..., str], tmp_path: Path, monkeypatch, own_globals
) -> None:
    for block in blocks_of(ROOT / 'docs' / 'tutorial.md'):
        if name := re.match(r'# (my_\w+\.py)\n', block.text):
            text = block.text
            for large, small in SMALLER.items():
                text = text.replace(large, small)
            (tmp_path / name[1]).write_text(text, 'utf-8')
    monkeypatch.chdir(tmp_path)
    save_random_weights(tmp_path / 'my_teacher.py', tmp_path / 'my_teacher.pth')
    plan = call_tool('distill', 'my_student.py', 'my_teacher.py', 'my_teacher.pth', '--dry-run')
    assert 'ChannelWiseLoss' in plan and 'PearsonLoss' in plan
