"""``epoch``: the pairs that it measures, and its table. A whole measurement takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import epochs
from benchmarks.cases import pick_pairs
from benchmarks.measure import Rounds
from benchmarks.report import Report, grids


def test_the_pairs_are_recipes_of_small_scenes():
    assert pick_pairs([], epochs.SMALL) == list(epochs.SMALL.values())
    assert pick_pairs(['detection'], epochs.SMALL) == [epochs.SMALL['detection']]
    with pytest.raises(ValueError, match='did you mean'):
        pick_pairs(['detektion'], epochs.SMALL)
    for small in epochs.SMALL.values():
        cfg = epochs.config_of(small)
        assert Path(cfg.train_dataloader.dataset.data_root).name == 'digit_scenes'
        pipeline = {
            step.type.rpartition('.')[2]: step for step in cfg.train_dataloader.dataset.pipeline
        }
        assert tuple(pipeline['RandomResize'].scale) == (small.size, small.size)
        assert tuple(pipeline['RandomCrop'].crop_size) == (small.size, small.size)


def test_the_table_compares_with_the_student_alone():
    seconds = dict(zip((*epochs.VARIANTS, epochs.WRITES), ([1.0], [2.5], [1.01], [1.02], [1.5])))
    (grid,) = grids(
        Report('epoch', 'cpu', {}, dict(clock='cpu'), rounds=[Rounds('F', '8', seconds)])
    )
    assert grid.title == 'Epoch with its loading: CPU time of all threads'
    found = dict(zip(grid.head[-5:], [cell.partition(' ')[0] for cell in grid.rows[0][-5:]]))
    assert found == {
        'ours : student': '2.50×',
        'student, views read : student': '1.01×',
        'ours, cached views : student': '1.02×',
        'ours, cached views : student, views read': '1.01×',
        'a view written : ours': '0.60×',
    }
