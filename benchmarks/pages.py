"""The tables of the docs that come from the results: ``python -m benchmarks.pages``.

A table of a page is known by its head; the lines around it stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, scaling, versus
from benchmarks.losses import EAGER, FLOOR, TEXTBOOK
from benchmarks.report import Grid, Report
from mmkd_plugin import losses as own
from mmkd_plugin.saving import write_text

DOCS = Path(__file__).parents[1] / 'docs'
MEMORY, SCALING = versus.RESULTS / 'memory-cpu.json', versus.RESULTS / 'scaling-cpu.json'
EPOCHS = versus.RESULTS / 'epoch-cpu.json'
#: All losses in one run, at sizes that are alike.
MIDDLE = versus.RESULTS / 'one_run' / 'losses-cpu.json'

#: What a loss may need besides maps, as readers call it.
NEEDS = {
    'labels': 'labels',
    'seed': 'random numbers',
    'margin': "batch norm before the teacher's map",
    'padded_boxes': 'boxes',
    'assigned': 'what the assigner found',
}


def pages() -> dict[Path, list[Grid]]:
    """The tables of each page, from the results in this folder."""
    return {DOCS / 'performance.md': tables(), DOCS / 'losses.md': [costs(Report.load(MIDDLE))]}


def costs(found: Report) -> Grid:
    """What each loss needs, its time, and how that compares with the textbook's form."""
    shapes = {case.name: case.size for case in scaling.pick([])}
    rows = []
    for one in found.rounds:
        name, _, variant = one.group.partition(' ')
        cells = [f'[`{name}`](#{name.lower()}){variant and ", "}{variant}', needs(name)]
        cells += [shapes[one.group], report.milliseconds(one.time(EAGER))]
        cells += [report.spread(one.ratio(slow, fast)) for slow, fast in RATIOS]
        rows.append(cells)
    head = ['loss', 'needs', 'maps', 'ms', 'floor', 'textbook']
    return Grid('Costs', head, rows, 3)


#: What is divided by what in the columns of :func:`costs`.
RATIOS = (EAGER, FLOOR), (TEXTBOOK, EAGER)


def needs(name: str) -> str:
    """What a loss needs besides maps, and what it has of its own."""
    loss = getattr(own, name)(**(dict(classes=2) if name == 'MemoryContrastLoss' else {}))
    words = [NEEDS[key] for key in getattr(loss, 'needs', ()) if key in NEEDS]
    if hasattr(loss, 'setup'):
        loss.setup([16], [16])
        words += ['layers of its own'] * any(True for _ in loss.parameters())
        words += ['a memory'] * any('queue' in key or 'memor' in key for key in loss.state_dict())
    return ', '.join(words)


def tables() -> list[Grid]:
    """Those of the page on performance."""
    both, one = (Report.load(file) for file in versus.FILES)
    found = [versus.ratios(one), versus.table([both, one])]
    later = {rounds.group for rounds in one.rounds}
    found.append(peaks(Report.load(MEMORY), later))
    return [*found, *report.grids(Report.load(EPOCHS)), *report.grids(Report.load(SCALING))]


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
    for page, grids in pages().items():
        write_text(page, renewed(page.read_text(encoding='utf-8'), grids))
