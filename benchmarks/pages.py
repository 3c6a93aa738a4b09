"""The tables of ``docs/performance.md`` that come from the results: ``python -m benchmarks.pages``.

A table of the page is known by its head; the lines around it stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, versus
from benchmarks.losses import EAGER, TEXTBOOK
from benchmarks.report import Grid, Report
from mmkd_plugin.saving import write_text

PAGE = Path(__file__).parents[1] / 'docs' / 'performance.md'
MEMORY, SCALING = versus.RESULTS / 'memory-cpu.json', versus.RESULTS / 'scaling-cpu.json'


def tables() -> list[Grid]:
    """Those of the page, from the results in this folder."""
    both, one = (Report.load(file) for file in versus.FILES)
    found = [versus.ratios(one), versus.table([both, one])]
    later = {rounds.group for rounds in one.rounds}
    return [*found, peaks(Report.load(MEMORY), later), *report.grids(Report.load(SCALING))]


def peaks(found: Report, groups: set[str]) -> Grid:
    """What some losses keep for backward and allocate, beside the textbook's form."""
    rows = []
    for one in found.footprints:
        if one.group in groups and EAGER in one.peak:
            sizes = one.allowed, one.saved[EAGER], one.peak[EAGER], one.peak.get(TEXTBOOK)
            name, _, variant = one.group.partition(' ')
            cells = ['–' if size is None else report.megabytes(size) for size in sizes]
            rows.append([f'`{name}`{variant and ", "}{variant}', one.case, *cells])
    head = ['loss', 'maps', 'inputs and one map', 'ours keeps', 'ours, peak', 'textbook, peak']
    return Grid('Memory', head, rows, 2)


def renewed(page: str, grids: Sequence[Grid]) -> str:
    """The page with each table in place of the one with the same head.

    Raises:
        ValueError: If there is not one table with such a head.
    """
    lines = page.split('\n')
    for grid in grids:
        new = grid.markdown().split('\n')
        if lines.count(new[0]) != 1:
            raise ValueError(f'{lines.count(new[0])} tables of the page have the head {new[0]}')
        start = end = lines.index(new[0])
        while end < len(lines) and lines[end].startswith('|'):
            end += 1
        lines[start:end] = new
    return '\n'.join(lines)


if __name__ == '__main__':
    write_text(PAGE, renewed(PAGE.read_text(encoding='utf-8'), tables()))
