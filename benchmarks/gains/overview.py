"""What the finished runs say in short: tables of READMEs, and docs/choosing.md."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill

from benchmarks.gains.intervals import mean_interval
from benchmarks.gains.recipes import losses
from benchmarks.gains.records import Record
from benchmarks.gains.rows import (
    Row,
    groups,
    limits,
    main_rows,
    number,
    percent,
    signed,
    students,
    title_of,
    weight_name,
)
from benchmarks.gains.tables import ROOT, shipped
from mmkd_plugin.saving import write_text

#: The data sets of real pictures.
REAL = ('camvid', 'bccd')

CHOOSING = """# Which method

`tools/reproduce.py` writes this page from the [finished runs](results.md) and from nothing else.
Each table has one pair of small models that are trained from random weights. Your models and data
may rank the methods in another order: take the first one or two as a start, with
`loss_weight='auto'`, and compare on your validation data.
[`tools/distill.py`](get_started.md#distil-your-own-student-with-one-command) takes the row that
helps on each data set.

- **helps**, **hurts**: the 95 % interval of the gain does not contain zero.
- **weight**: `auto:2.5` is short for `loss_weight=dict(auto=2.5)`.
- **against time**: the gain over a student alone that trains as long in wall time. Below zero, the
  time is spent better on more iterations without a teacher. These students train for few
  iterations, so more of them help much.
"""


def write(records: Sequence[Record], root: Path = ROOT) -> None:
    """Writes docs/choosing.md, and the generated blocks of the other pages, :data:`BLOCKS`.

    Args:
        records (Sequence[Record]): All finished runs.
        root (Path): The repository. Defaults to this one.
    """
    write_text(root / 'docs' / 'choosing.md', choosing(records))
    for name, block in BLOCKS.items():
        file = root / name
        write_text(file, filled(file.read_text(encoding='utf-8'), block(records)))


def filled(text: str, block: str) -> str:
    """A page with another block between its two marks.

    Args:
        text (str): The page.
        block (str): What comes between the marks.

    Raises:
        ValueError: If it does not have both marks, once.
    """
    begin, end = '<!-- gains: written by tools/reproduce.py -->\n', '<!-- /gains -->\n'
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError('the page must have the two marks of the gains once')
    before, _, rest = text.partition(begin)
    return before + begin + block + end + rest.partition(end)[2]


def real_table(records: Sequence[Record]) -> str:
    """The best recipe on each data set of real pictures, for the README."""
    lines = [
        '| data | score | student alone | distilled | teacher | gain | share of the gap | recipe |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for runs in groups(records):
        rows = [one for one in main_rows(runs) if has_interval(one)]
        if runs[0].data not in REAL or not rows:
            continue
        best, first = max(rows, key=lambda one: one.gain.low), runs[0]
        alone = mean_interval([r.score for r in students(runs).values()])
        teacher = next(r.score for r in reversed(runs) if (r.method, r.seed) == ('teacher', 0))
        cells = [
            title_of(first).partition(',')[0],
            f'{first.metric}, {first.split}',
            number(alone.value),
            number(best.score),
            number(teacher),
            signed(best.gain),
            '' if best.share is None else percent(best.share),
            f'[{best.method}]({best.config})',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    if len(lines) == 2:
        return 'No runs are finished yet.\n'
    return '\n'.join(lines) + '\n'


def matrix(records: Sequence[Record]) -> str:
    """The gain of each method in each table, with its weight, for configs/README.md."""
    every = [runs for runs in groups(records) if shipped(runs[0].data)]
    tables = [(title_of(runs[0]), main_rows(runs)) for runs in every]
    tables = [(title, {one.method: one for one in rows}) for title, rows in tables if rows]
    if not tables:
        return 'No runs are finished yet.\n'
    lines = [
        f'| method | {" | ".join(title for title, _ in tables)} |',
        f'|---|{"---|" * len(tables)}',
    ]
    for method in sorted({method for _, rows in tables for method in rows}):
        cells = [cell(rows[method]) if method in rows else '' for _, rows in tables]
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def by_loss(records: Sequence[Record], root: Path = ROOT) -> str:
    """Where each loss helped, for docs/losses.md: the gains of the recipes that have it."""
    found: dict[str, list[str]] = {}
    for runs in groups(records):
        if not shipped(runs[0].data):
            continue
        title = title_of(runs[0]).partition(':')[0]
        for one in main_rows(runs):
            gain = 'diverged' if one.diverged else f'{one.gain.value:+.1f}, {one.verdict}'
            gain = f'**{gain}**' if one.verdict == 'helps' else gain
            text = (root / one.config).read_text(encoding='utf-8')
            for name in losses_of(text):
                found.setdefault(name, []).append(f'{title}: {gain} ({one.method})')
    if not found:
        return 'No runs are finished yet.\n'
    rows = (f'| [`{name}`](#{name.lower()}) | {"; ".join(found[name])} |' for name in sorted(found))
    return '\n'.join(['| loss | gains |', '|---|---|', *rows]) + '\n'


def losses_of(recipe: str) -> list[str]:
    """The losses of the terms of a recipe, each once, without the scope."""
    calls = losses(ast.parse(recipe))
    types = [word.value.value for call in calls for word in call.keywords if word.arg == 'type']
    return sorted({name.rpartition('.')[2] for name in types})


def cell(one: Row) -> str:
    """A gain with its verdict and weight; the verdict alone where it is not clear."""
    if one.diverged:
        return 'diverged'
    gain = f'{one.gain.value:+.1f}'
    if one.verdict == 'inconclusive':
        return f'{gain}, inconclusive'
    return f'**{gain}**{limits(one.gain, "+.1f")}, {one.verdict}, {weight_name(one.weight)}'


def choosing(records: Sequence[Record]) -> str:
    """docs/choosing.md."""
    parts = [CHOOSING]
    for runs in groups(records):
        rows = main_rows(runs)
        if rows and shipped(runs[0].data):
            parts.append(section(title_of(runs[0]), runs[0].metric, rows))
    if len(parts) == 1:
        parts.append('No runs are finished yet.\n')
    return '\n'.join(parts)


def section(title: str, metric: str, rows: Sequence[Row]) -> str:
    """A table of the methods that help, and the names of the others."""
    of = {verdict: [one for one in rows if one.verdict == verdict] for verdict in VERDICTS}
    lines = [f'## {title}', '']
    if of['helps']:
        lines += [
            f'| method | weight | gain, {metric} | step time | against time |',
            '|---|---|---|---|---|',
        ]
        for one in of['helps']:
            over = '' if one.over_longer is None else signed(one.over_longer)
            ratio = '' if one.ratio is None else f'{one.ratio:.2f}×'
            lines.append(
                f'| [{one.method}](../{one.config}) | {weight_name(one.weight)} '
                f'| {signed(one.gain)} | {ratio} | {over} |'
            )
        lines.append('')
    for verdict, words in VERDICTS.items():
        if words and of[verdict]:
            names = ', '.join(f'{one.method} ({one.gain.value:+.1f})' for one in of[verdict])
            if verdict == 'diverged':
                names = ', '.join(one.method for one in of[verdict])
            lines += [fill(f'{words}: {names}.', 100, break_on_hyphens=False), '']
    return '\n'.join(lines)


#: The verdicts, and how a list of such methods begins.
VERDICTS = {
    'helps': '',
    'inconclusive': 'Not to be told from nothing',
    'hurts': 'Worse than the student alone',
    'diverged': 'Diverged',
}

#: The pages with a generated block.
BLOCKS: dict[str, Callable[[Sequence[Record]], str]] = {
    'README.md': real_table,
    'configs/README.md': matrix,
    'docs/losses.md': by_loss,
}


def has_interval(one: Row) -> bool:
    """Whether there are enough seeds for one: of two it is too wide to say anything."""
    return not one.diverged and one.runs > 2 and math.isfinite(one.gain.low)
