"""``epoch``: the pairs that it measures, and its table. A whole measurement takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import epochs
from benchmarks.cases import pick_pairs
from benchmarks.measure import Rounds
from benchmarks.report import Report, grids
from mmkd_plugin.cli import read_config


def test_the_pairs_are_recipes_of_small_scenes():
    assert pick_pairs([], epochs.SMALL) == list(epochs.SMALL.values())
    assert pick_pairs(['detection'], epochs.SMALL) == [epochs.SMALL['detection']]
    with pytest.raises(ValueError, match='did you mean'):
        pick_pairs(['detektion'], epochs.SMALL)
    for small in epochs.SMALL.values():
        cfg = read_config(str(epochs.CONFIGS / small.config))
        assert Path(cfg.train_dataloader.dataset.data_root).name == 'digit_scenes'


def test_the_table_compares_with_the_student_alone():
    found = Rounds('FPN', '8 scenes', dict(zip(epochs.VARIANTS, ([1.0], [2.5], [1.02]))))
    (grid,) = grids(Report('epoch', 'cpu', {}, dict(clock='cpu'), rounds=[found]))
    assert grid.title == 'Epoch with its loading: CPU time of all threads'
    assert grid.head[-2:] == ['ours : student', 'ours, cached views : student']
    assert [cell.partition(' ')[0] for cell in grid.rows[0][-2:]] == ['2.50×', '1.02×']
