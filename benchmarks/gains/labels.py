"""Few labels: students with a part of the labels, alone and with the rest of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from benchmarks.gains.intervals import Interval, mean_interval
from benchmarks.gains.records import Record
from benchmarks.gains.rows import groups, limits, number, signed, students, title_of
from benchmarks.gains.split import FEW, FEW_SEEDS, TRIED, TRIED_AT, is_trial, share_of

HEAD = f"""## Few labels

Students with a part of the labels: alone, and with the rest of the images without labels
([unlabelled.md](unlabelled.md)). The rules were fixed before the first run.

- **Labels.** {', '.join(f'{share:.0%}' for share in FEW)} of the training images keep their labels:
  the first ones of `numpy.random.default_rng(seed).permutation(images)`, at least one. So the seed
  of a run chooses them, and a larger part has the images of a smaller one.
- **Pairs.** With a seed, both students have the same initial weights, the same labelled images in
  the same batches, and as many iterations as in the other tables. One of them also gets a batch of
  the rest in each iteration, as many images, and the terms of the recipe. {FEW_SEEDS} seeds.
- **Teacher.** It is the teacher of the other tables, which has learnt from all labels.
- **Weight.** The trials are {', '.join(f'`{t}`' for t in TRIED)}, at {TRIED_AT:.0%} of the labels,
  with the seed that no result has, scored on the validation split. The best one is run with all
  parts and seeds. Nothing else is tuned.
- **All labels.** The student alone with all labels is that of the other tables, with its seeds.
"""

ALONE, WITH_REST = 'student alone', 'and the rest without labels'
COLOURS = {ALONE: '0.45', WITH_REST: '#0072B2'}


@dataclass(frozen=True)
class Line:
    """A method with a part of the labels.

    Args:
        share (float): The part.
        alone (Interval): Scores of the student alone with these labels.
        taught (Interval, optional): Scores with the rest of the images; None if not run yet.
        gain (Interval, optional): The paired difference.
        seeds (int): Of the method, or of the student alone if the method has none.
    """

    share: float
    alone: Interval
    taught: Interval | None
    gain: Interval | None
    seeds: int


def lines_of(records: Sequence[Record], method: str) -> list[Line]:
    """The lines of a method, those with few labels first.

    Args:
        records (Sequence[Record]): All runs of a table.
        method (str): A recipe with ``unlabelled``.
    """
    found = []
    for share in FEW:
        of = [r for r in records if share_of(r.purpose) == share and not is_trial(r.purpose)]
        alone = {r.seed: r.score for r in of if r.method == 'student' and r.score is not None}
        taught = {r.seed: r.score for r in of if r.method == method and r.score is not None}
        both = sorted(alone.keys() & taught.keys())
        if alone:
            found.append(
                Line(
                    share,
                    mean_interval(list(alone.values())),
                    mean_interval(list(taught.values())) if taught else None,
                    mean_interval([taught[s] - alone[s] for s in both]) if both else None,
                    len(taught) or len(alone),
                )
            )
    return found


def methods_of(records: Sequence[Record]) -> list[str]:
    """The recipes with images without labels that have a result; trials are none."""
    counted = {r.method for r in records if share_of(r.purpose) and not is_trial(r.purpose)}
    return sorted(counted - {'student'})


def section(records: Sequence[Record], folder: str = 'images/') -> str:
    """The section of the page: its rules, and a table with a plot for each student.

    Args:
        records (Sequence[Record]): All finished runs.
        folder (str): Where the plots are. Defaults to ``'images/'``.
    """
    parts = [HEAD]
    for runs in groups(records, few_labels=True):
        for method in methods_of(runs):
            parts.append(_table(runs, method, folder))
    if len(parts) == 1:
        parts.append('No runs are finished yet.\n')
    return '\n'.join(parts)


def _table(records: Sequence[Record], method: str, folder: str) -> str:
    full = [r.score for r in students(records).values()]
    teacher = [r.score for r in records if r.method == 'teacher' and r.score is not None]
    first = next(r for r in records if r.method == method)
    chosen = sorted({f'`{r.weight}`' for r in records if _counts(r, method)})
    facts = [f'{first.metric} on the {_SPLIT[first.split]} split, in percent.']
    if full:
        facts.append(f'With all labels the student alone has {fmean(full):.2f}.')
    if teacher:
        facts.append(f'The teacher has {teacher[-1]:.2f}.')
    facts.append(f'Weight: {", ".join(chosen)}.')
    rows = []
    for line in lines_of(records, method):
        reached = (
            '' if not full or line.taught is None else f'{line.taught.value / fmean(full):.0%}'
        )
        rows.append(
            f'| {line.share:.0%} | {line.seeds} | {_scored(line.alone)} | {_scored(line.taught)} '
            f'| {"" if line.gain is None else signed(line.gain)} | {reached} |'
        )
    return '\n'.join(
        [
            f'### {title_of(first)}, {method}',
            '',
            fill(f'[{method}](../{first.config}): {" ".join(facts)}', 100, break_long_words=False,
                 break_on_hyphens=False),
            '',
            f'![Score by the labels]({folder}{plot_name(first)})',
            '',
            f'| labels | seeds | {ALONE} | {WITH_REST} | gain | of the student with all labels |',
            '|---|---|---|---|---|---|',
            *rows,
            '',
        ]
    )  # fmt: skip


_SPLIT = {'val': 'validation', 'test': 'test'}


def _counts(record: Record, method: str) -> bool:
    return record.method == method and not is_trial(record.purpose)


def _scored(found: Interval | None) -> str:
    return '' if found is None else f'{number(found.value)}{limits(found)}'


def plot_name(record: Record) -> str:
    """The file of a plot."""
    model = record.student.partition('_')[0]
    return f'labels-{record.data}-{model}-{record.method}.png'.replace('_', '-')


def draw(records: Sequence[Record], method: str, path: Path) -> None:
    """Draws the scores by the part of the labels.

    Args:
        records (Sequence[Record]): All runs of a table.
        method (str): A recipe with ``unlabelled``.
        path (Path): The picture.
    """
    lines, full = lines_of(records, method), [r.score for r in students(records).values()]
    figure, axes = plt.subplots(figsize=(6, 3.8))
    for label, marker in ((ALONE, 's'), (WITH_REST, 'o')):
        points = [(x.share, x.alone if label == ALONE else x.taught) for x in lines]
        points = [(share, found) for share, found in points if found is not None]
        if label == ALONE and full:
            points.append((1.0, mean_interval(full)))
        if points:
            _draw_line(axes, points, color=COLOURS[label], marker=marker, label=label)
    if full:
        axes.axhline(
            0.9 * fmean(full), color='0.7', lw=1, ls='--', label='90 % of the score with all labels'
        )
    teacher = [r.score for r in records if r.method == 'teacher' and r.score is not None]
    if teacher:
        axes.axhline(teacher[-1], color='black', lw=1, label='teacher')
    axes.set_xscale('log')
    axes.set_xticks([*FEW, 1.0], [f'{share:.0%}' for share in (*FEW, 1.0)])
    axes.minorticks_off()
    axes.set_xlabel('labelled images')
    axes.set_ylabel(f'{records[0].metric}, %')
    axes.set_title(title_of(records[0]), fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    figure.savefig(path, format='png', dpi=110, bbox_inches='tight', facecolor='white')
    plt.close(figure)


def _draw_line(axes: Any, points: Sequence[tuple[float, Interval]], **style: Any) -> None:
    shares, found = zip(*points, strict=True)
    values = [one.value for one in found]
    axes.plot(shares, values, lw=1.5, ms=5, **style)
    for share, one in points:
        if not math.isinf(one.low):
            axes.plot([share, share], [one.low, one.high], color=style['color'], lw=1.5)
