"""What weights do: the automatic one against grids of fixed ones, and the trials of all methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from textwrap import fill

from benchmarks.gains.plan import TRIALS
from benchmarks.gains.records import Record
from benchmarks.gains.rows import Row, gain, number, row, students, title_of, weights_of

#: Fixed weights that make a grid.
GRID = 5


def against_grids(tables: Sequence[Sequence[Record]]) -> list[str]:
    """The section that compares the default automatic weight with grids of fixed ones, if any."""
    lines, reached, harmed = [], 0, 0
    for records in tables:
        for method in sorted({r.method for r in records if r.weight == 'auto'}):
            cells = {w: row(records, method, w) for w in weights_of(records, method)}
            fixed = {w: c for w, c in cells.items() if not isinstance(w, str) and c is not None}
            auto = cells.get('auto')
            if auto is None or len(fixed) < GRID:
                continue
            best = max(fixed, key=lambda w: _value(fixed[w]))
            enough = _value(auto) >= 0.95 * _value(fixed[best])
            reached, harmed = reached + enough, harmed + (_value(auto) < 0)
            lines.append(
                f'| {title_of(records[0])} | {method} | {best:g} | {gain(fixed[best])} '
                f'| {gain(auto)} | {"yes" if enough else "no"} |'
            )
    if not lines:
        return []
    words = (
        f"Each method once more, with `loss_weight='auto'` and with {GRID} fixed weights, a factor "
        f'of ten apart. The automatic weight reaches 95 % of the gain of the best fixed one in '
        f'{reached} of {len(lines)} cells, and is below the student alone in {harmed}. The best of '
        f'{GRID} runs has luck on its side, the automatic weight is one run.'
    )
    head = ('table', 'method', 'best weight', 'its gain', 'gain with `auto`', 'reaches 95 %')
    return [_section('The automatic weight against a grid', words, head, lines)]


def trials(tables: Sequence[Sequence[Record]]) -> list[str]:
    """The section with the trials of all methods, which shows what a share does; if any."""
    lines, shares = [], []
    for records in tables:
        alone = [r.val_score for r in students(records).values() if r.val_score is not None]
        first = [r for r in records if (r.method, r.seed) == ('teacher', 0)]
        teacher = [r.val_score for r in first if r.val_score]
        tried = [r for r in records if r.purpose == 'trial']
        for method in sorted({r.method for r in tried}):
            scores = {r.weight: r.val_score for r in tried if r.method == method}
            if not alone or not teacher or not set(TRIALS) <= set(scores):
                continue
            base = fmean(alone)
            gap = teacher[-1] - base
            shares.append([_of_gap(scores[t], base, gap) for t in TRIALS])
            cells = [_cell(scores[t]) for t in TRIALS]
            own = f', its own {_cell(scores["recipe"])}' if 'recipe' in scores else ''
            lines.append(
                f'| {title_of(records[0])} | {method}{own} | {number(base)} '
                f'| {" | ".join(cells)} | {number(teacher[-1])} |'
            )
    if not lines:
        return []
    count = len(shares)
    each = [[one[place] for one in shares] for place in range(len(TRIALS))]
    means = [
        f'{fmean(of):.0%} of it with `{trial}` (below the student in {sum(s < 0 for s in of)})'
        for trial, of in zip(TRIALS, each, strict=True)
    ]
    words = (
        f'The validation scores of the trials, each with one seed that no result has; the student '
        f'alone is the mean of its seeds. On the mean of {count} methods the trials close, of the '
        f'gap between student and teacher on this split, {", ".join(means)}. A run that diverged '
        f'counts as nothing gained. "its own" is the trial of the weight in the recipe.'
    )
    head = ('table', 'method', 'student alone', *(f'`{t}`' for t in TRIALS), 'teacher')
    return [_section('The trials', words, head, lines)]


def _cell(score: float | None) -> str:
    return 'diverged' if score is None else number(score)


def _of_gap(score: float | None, alone: float, gap: float) -> float:
    return 0.0 if score is None or gap <= 0 else (score - alone) / gap


def _section(title: str, words: str, head: Sequence[str], lines: Sequence[str]) -> str:
    return '\n'.join(
        [
            f'## {title}',
            '',
            fill(words, 100, break_on_hyphens=False),
            '',
            f'| {" | ".join(head)} |',
            f'|{"---|" * len(head)}',
            *lines,
            '',
        ]
    )


def _value(one: Row) -> float:
    return -math.inf if math.isnan(one.gain.value) else one.gain.value
