"""The configs of the tutorial distil, on pictures and models of a small size."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, METRICS

from mmkd_plugin.cli import read_config
from tests.pages import ROOT, blocks_of
from tests.runs import needs_ops
from tests.tools.tool_runs import save_random_weights

SMALLER = {
    '(256, 256)': '(64, 64)',
    'depth=50': 'depth=34',
    '[256, 512, 1024, 2048]': '[64, 128, 256, 512]',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one is: a folder with the configs of the page, smaller."""
    for block in blocks_of(ROOT / 'docs' / 'tutorial.md'):
        if name := re.match(r'# (my_\w+\.py)\n', block.text):
            text = block.text
            for large, small in SMALLER.items():
                text = text.replace(large, small)
            (tmp_path / name[1]).write_text(text, 'utf-8')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pair_of_the_tutorial_fits(
    call_tool: Callable[..., str], folder: Path, own_globals: None
) -> None:
    save_random_weights(folder / 'my_teacher.py', folder / 'my_teacher.pth')
    plan = call_tool('distill', 'my_student.py', 'my_teacher.py', 'my_teacher.pth', '--dry-run')
    assert 'ChannelWiseLoss' in plan and 'PearsonLoss' in plan


@needs_ops
def test_the_pair_of_detectors_fits(
    call_tool: Callable[..., str], folder: Path, data: Path, own_globals: None
) -> None:
    (folder / 'data/mine').mkdir(parents=True)
    for split in ('train', 'val'):
        (folder / f'data/mine/{split}.json').symlink_to(data / 'boxes.json')
        (folder / f'data/mine/{split}').symlink_to(data / 'images')
    large = folder / 'my_large_detector.py'
    save_random_weights(large, folder / 'large.pth')
    plan = call_tool('distill', 'my_detector.py', large, 'large.pth', '--dry-run')
    assert 'ChannelWiseLoss' in plan and 'ProtocolLoss' in plan
    cfg = read_config('my_detector.py')
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        found = DATASETS.build(loader.dataset)
        assert found.metainfo['classes'] == ('box', 'disc') and len(found) == 6
        assert 'inputs' in found[0]
    METRICS.build(cfg.test_evaluator)
