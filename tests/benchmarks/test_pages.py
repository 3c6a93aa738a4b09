"""The tables of the page on costs: those of the results."""

from __future__ import annotations

import pytest

from benchmarks import cases, pages
from benchmarks.measure import Footprint
from benchmarks.report import Grid, Report


def test_the_pages_have_the_tables_of_the_results():
    for page, grids in pages.pages().items():
        text = page.read_text(encoding='utf-8')
        assert pages.renewed(text, grids) == text, f'{page}: python -m benchmarks.pages'


def test_each_loss_stands_in_the_table_of_costs():
    (grid,) = pages.pages()[pages.DOCS / 'losses.md']
    listed = {row[0].split('`')[1] for row in grid.rows}
    assert listed == set(cases.registered_losses())


def test_a_table_takes_the_place_of_the_one_with_its_head():
    page = 'before\n\n| a | b |\n| --- | --: |\n| old | 1 |\n| older | 2 |\n\nafter'
    grid = Grid('', ['a', 'b'], [['new', '3']])
    assert pages.renewed(page, [grid]) == 'before\n\n| a | b |\n| --- | --: |\n| new | 3 |\n\nafter'
    for wrong in ('no table', f'{page}\n{page}'):
        with pytest.raises(ValueError, match='tables of the page have the head'):
            pages.renewed(wrong, [grid])


def test_memory_is_that_of_some_losses():
    one = Footprint('HintLoss token', 'map 2', 9_000_000, {'ours': 3_000_000}, {'ours': 4_000_000})
    other = Footprint('FSPLoss', 'map 2', 1, {'ours': 1}, {'ours': 1})
    found = pages.peaks(
        Report('memory', 'cpu', {}, {}, footprints=[one, other]), {'HintLoss token'}
    )
    assert found.rows == [['`HintLoss`, token', 'map 2', '9', '3', '4', '–']]
