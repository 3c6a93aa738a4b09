"""The tables of the page on costs: those of the results."""

from __future__ import annotations

import pytest

from benchmarks import pages
from benchmarks.measure import Footprint
from benchmarks.report import Grid, Report


def test_the_page_has_the_tables_of_the_results():
    page = pages.PAGE.read_text(encoding='utf-8')
    assert pages.renewed(page, pages.tables()) == page


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
