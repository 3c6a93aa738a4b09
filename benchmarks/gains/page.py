"""docs/results.md and its plots, from the finished runs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from textwrap import fill

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from benchmarks.gains.intervals import Interval, mean_interval, ratio_interval
from benchmarks.gains.plan import ALONE, LONGER, TRIAL_SEED, TRIALS, best_of, longer_factor
from benchmarks.gains.records import Record
from benchmarks.gains.tables import DATA
from mmkd_plugin.saving import replacing, write_text

#: Fixed weights that make a grid.
GRID = 5

COLOURS = {'helps': '#0072B2', 'hurts': '#D55E00', 'inconclusive': '0.55'}

HEAD = f"""# What each method gains

`tools/reproduce.py` writes this page and its plots from
[runs.jsonl](../benchmarks/results/gains/runs.jsonl), which has one line for each finished run.
Nothing here is typed by hand.

## Rules

These rules were fixed before the first counted run, but for the one change that they name.

- **Pairs.** With a seed, the distilled student has the same initial weights and sees the same
  batches as the student alone. The gain is the difference of their scores. All seeds have the same
  teacher.
- **Budget.** Each method gets the same {len(TRIALS)} trials, which are scored on the validation
  split: `loss_weight` {', '.join(f'`{t}`' for t in TRIALS)}, the share of the task's gradient that
  each term of the recipe gets ([automatic weights](distiller.md#weights-that-find-themselves)).
  The trials have a seed of their own ({TRIAL_SEED}), which no result has. The best share is then
  run with all seeds. Nothing else is tuned. The student alone keeps the settings of its config,
  from which the recipes inherit theirs. The range of shares was moved once, on 2026-11-29: it had
  been 0.1 to 2.5, and the first two methods (CWD on BCCD and on CamVid) were best at its end. They
  got the new trial too.
- **Score.** The last checkpoint counts, scored on the test split if the data has one, else on the
  validation split. Then the trials have seen the images of the results, with another seed.
- **Gain.** The mean of the paired differences, with its 95 % interval from Student's t over the
  seeds. The intervals are about the seed alone: other data, or another teacher, are not in them.
- **Share.** The gain divided by the gap, the teacher's score minus that of the student alone. Its
  interval is Fieller's, because gain and gap share the score of the student alone, and because a
  bootstrap of three or five values is too narrow. It is "any" if the gap cannot be told from zero.
- **Verdict.** *helps* or *hurts* if the interval of the gain does not contain zero, else
  *inconclusive*. Of twenty methods that do nothing, one gets a verdict by chance.
- **The longer student.** Distillation makes an iteration longer. So the student alone is also
  trained for as long, in wall time, as the distilled one: its iterations and its schedule are
  multiplied by the measured ratio of step times, rounded up to one of
  {', '.join(f'{f:g}' for f in LONGER)} (up to 1.05 it is the student as it is). The time of a step
  is that of the whole run divided by its iterations; on a CPU it is processor time of one thread,
  because other programs share the machine. The last column compares the two students.
- A run whose loss is no longer finite has no score. A method with such a run gets the verdict
  *diverged*.

## Do it yourself

```shell
make reproduce
```

This trains everything with one process of one thread on each core, and writes its own
`runs.jsonl` and `results.md` in `work_dirs/reproduce/`. Kill it at any moment: the same command
goes on. `tools/reproduce.py` has the options:

| option | does |
|---|---|
| `--dry-run` | prints the plan with its time |
| `--quick` | shows in minutes that it works; its numbers mean nothing |
| `--only "digit_scenes/cwd*"` | these recipes, with the teacher and the student that they need |
| `--jobs 4`, `--gpus 0 1` | processes of one thread, or one on each GPU |
| `--weights 0.1 1 10 auto recipe` | these loss weights instead of trials |
| `--results FILE` | where finished runs are noted |
| `--report` | writes the page again |

Recipes are found by their names in `configs/`, so a new recipe is in the next plan.
"""


@dataclass(frozen=True)
class Row:
    """A method at one weight.

    Args:
        method (str): Its name.
        config (str): Its recipe.
        weight (float | str): Its weight, as in :class:`Record`.
        runs (int): Seeds.
        score (float): Mean score in percent.
        gain (Interval): Over the student alone.
        share (Interval, optional): Of the gap; None without a gap.
        ratio (float, optional): Time of an iteration in multiples of the student's.
        against (float, optional): The multiple of iterations of the longer student.
        over_longer (Interval, optional): Gain over that student.
        diverged (int): Runs without a score.
    """

    method: str
    config: str
    weight: float | str
    runs: int
    score: float
    gain: Interval
    share: Interval | None
    ratio: float | None
    against: float | None
    over_longer: Interval | None
    diverged: int

    @property
    def verdict(self) -> str:
        """In a word."""
        return 'diverged' if self.diverged else self.gain.verdict


def write(records: Sequence[Record], path: Path, images: Path) -> None:
    """Writes the page and its plots.

    Args:
        records (Sequence[Record]): All finished runs.
        path (Path): The page.
        images (Path): Folder of the plots, beside the page or below it.
    """
    for records_of in groups(records):
        rows = main_rows(records_of)
        if rows:
            with replacing(images / plot_name(records_of[0])) as (beside,):
                draw(rows, records_of, beside)
    folder = '' if images == path.parent else f'{images.name}/'
    write_text(path, text(records, folder))


def text(records: Sequence[Record], folder: str = 'images/') -> str:
    """The page.

    Args:
        records (Sequence[Record]): All finished runs.
        folder (str): Where its plots are. Defaults to ``'images/'``.
    """
    parts = [HEAD]
    found = groups(records)
    parts += against_grids(found)
    if not found:
        parts.append('## Tables\n\nNo runs are finished yet.\n')
    for one in found:
        parts.append(section(one, folder))
    return '\n'.join(parts)


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
    head = '| table | method | best weight | its gain | gain with `auto` | reaches 95 % |'
    return [
        '\n'.join(
            [
                '## The automatic weight against a grid',
                '',
                fill(words, 100, break_on_hyphens=False),
                '',
                head,
                '|---|---|---|---|---|---|',
                *lines,
                '',
            ]
        )
    ]


def _value(one: Row) -> float:
    return -math.inf if math.isnan(one.gain.value) else one.gain.value


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """The runs of each table, in the order of the data sets; repeated runs count once."""
    order = {data.name: number for number, data in enumerate(DATA)}
    found: dict[tuple, dict[tuple, Record]] = {}
    for record in records:
        table = (order.get(record.data, len(order)), record.data, record.task, record.student)
        run = (record.method, record.purpose, record.weight, record.seed, record.length)
        found.setdefault(table, {}).setdefault(run, record)
    return [list(runs.values()) for _, runs in sorted(found.items(), key=lambda item: item[0])]


def title_of(record: Record) -> str:
    """The name of a table."""
    titles = {data.name: data.title for data in DATA}
    model = record.student.partition('_')[0]
    return f'{titles.get(record.data, record.data)}, {record.task}: {model}'


def plot_name(record: Record) -> str:
    """The file of its plot."""
    return f'gains-{record.data}-{record.student.partition("_")[0]}.png'.replace('_', '-')


def students(records: Sequence[Record]) -> dict[int, Record]:
    """The runs of the student alone, by seed."""
    return {r.seed: r for r in records if r.method == 'student' and r.score is not None}


def row(records: Sequence[Record], method: str, weight: float | str) -> Row | None:
    """A method at a weight; None if no seed has both it and the student alone."""
    alone = students(records)
    runs = [
        r
        for r in records
        if (r.method, r.weight, r.purpose) == (method, weight, 'counted') and r.seed in alone
    ]
    if not runs:
        return None
    whole = [r for r in runs if r.score is not None]
    gains = [r.score - alone[r.seed].score for r in whole]
    share = None
    if whole and all(r.teacher_score is not None for r in whole):
        share = ratio_interval(gains, [r.teacher_score - alone[r.seed].score for r in whole])
    ratio = against = over = None
    if whole:
        base = median(r.step_seconds for r in alone.values())
        ratio = median(r.step_seconds for r in whole) / base
        against = longer_factor(ratio)
        length = whole[0].length * against
        compared = {
            r.seed: r.score
            for r in records
            if r.method == ('student' if against == 1 else 'longer')
            and r.score is not None
            and math.isclose(r.length, length)
        }
        pairs = [r.score - compared[r.seed] for r in whole if r.seed in compared]
        over = mean_interval(pairs) if pairs else None
    nothing = Interval(math.nan, -math.inf, math.inf)
    return Row(
        method,
        runs[0].config,
        weight,
        len(whole),
        fmean(r.score for r in whole) if whole else math.nan,
        mean_interval(gains) if gains else nothing,
        share,
        ratio,
        against,
        over,
        len(runs) - len(whole),
    )


def weights_of(records: Sequence[Record], method: str) -> list[float | str]:
    """The weights of a method that count, numbers first."""
    found = {r.weight for r in records if r.method == method and r.purpose == 'counted'}
    return sorted(found, key=lambda one: (isinstance(one, str), one))


def tuned_weight(records: Sequence[Record], method: str) -> float | str:
    """The weight that the trials chose; without all trials the recipe's own, or the first."""
    counted = weights_of(records, method)
    trials = [r for r in records if r.method == method and r.purpose == 'trial']
    scores = {r.weight: r.val_score for r in trials}
    if set(TRIALS) <= set(scores) and best_of(scores) in counted:
        return best_of(scores)
    return 'recipe' if 'recipe' in counted else counted[0]


def main_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each method at its weight, the largest gain first."""
    methods = {r.method for r in records if r.purpose == 'counted'} - set(ALONE)
    rows = [row(records, method, tuned_weight(records, method)) for method in sorted(methods)]
    known = [one for one in rows if one is not None]
    return sorted(known, key=lambda one: math.inf if math.isnan(one.score) else -one.gain.value)


def section(records: Sequence[Record], folder: str) -> str:
    """A table with its plot."""
    first, alone = records[0], students(records)
    lines = [f'## {title_of(first)}', '']
    teacher = [r for r in records if r.method == 'teacher' and r.score is not None]
    split = {'val': 'validation', 'test': 'test'}[first.split]
    facts = [f'Score: {first.metric} on the {split} split, in percent.']
    if alone:
        found = mean_interval([r.score for r in alone.values()])
        facts.append(f'Student alone: {number(found.value)}{limits(found)}, {len(alone)} seeds.')
    if teacher:
        facts.append(f'Teacher: {number(teacher[-1].score)}.')
    hours = sum(r.step_seconds * r.iterations for r in records) / 3600
    facts.append(
        f'{len(records)} runs, {hours:.1f} hours of {" and ".join(devices(records))} in sum.'
    )
    days = sorted({r.date for r in records})
    versions = sorted({r.version for r in records})
    facts.append(f'From {days[0]} to {days[-1]}; version {", ".join(versions)}.')
    lines += [fill(f'- {fact}', 100, subsequent_indent='  ') for fact in facts]
    lines.append('')
    rows = main_rows(records)
    if not rows:
        return '\n'.join([*lines, 'No method is finished yet.', ''])
    lines += [
        f'![Gain of each method, with its interval]({folder}{plot_name(first)})',
        '',
        f'| method | weight | seeds | {first.metric} | gain | share of the gap | verdict '
        '| step time | over the longer student |',
        '|---|---|---|---|---|---|---|---|---|',
        *(table_line(one) for one in rows),
        '',
    ]
    grid = [one for one in rows if len(weights_of(records, one.method)) > 1]
    if grid:
        every = sorted(
            {w for one in grid for w in weights_of(records, one.method)},
            key=lambda one: (isinstance(one, str), one),
        )
        lines += [
            '### Weights',
            '',
            'The gain by the loss weight:',
            '',
            f'| method | {" | ".join(weight_name(one) for one in every)} |',
            f'|---|{"---|" * len(every)}',
        ]
        for one in grid:
            cells = [row(records, one.method, weight) for weight in every]
            gains = ['' if cell is None else gain(cell) for cell in cells]
            lines.append(f'| {one.method} | {" | ".join(gains)} |')
        lines.append('')
    longer = sorted({r.length for r in records if r.method == 'longer'})
    if longer:
        lines += ['The student alone, trained longer:', '', '| iterations | seeds | gain |']
        lines.append('|---|---|---|')
        for length in longer:
            runs = [
                r for r in records if (r.method, r.length) == ('longer', length) and r.seed in alone
            ]
            gains = [r.score - alone[r.seed].score for r in runs if r.score is not None]
            if gains:
                found = mean_interval(gains)
                count = runs[0].iterations
                lines.append(f'| {count} | {len(gains)} | {signed(found)} |')
        lines.append('')
    return '\n'.join(lines)


def table_line(one: Row) -> str:
    """A row in Markdown."""
    share = '' if one.share is None else percent(one.share)
    ratio = '' if one.ratio is None else f'{one.ratio:.2f}×'
    over = '' if one.over_longer is None else f'{signed(one.over_longer)}, {one.against:g}×'
    cells = [
        f'[{one.method}](../{one.config})',
        weight_name(one.weight),
        str(one.runs),
        number(one.score),
        gain(one),
        share,
        one.verdict,
        ratio,
        over,
    ]
    return f'| {" | ".join(cells)} |'


def weight_name(weight: float | str) -> str:
    """A weight as readers see it."""
    return weight if isinstance(weight, str) else f'{weight:g}'


def gain(one: Row) -> str:
    """The gain, or that there is none."""
    if math.isnan(one.gain.value):
        return f'diverged ({one.diverged})'
    return signed(one.gain) + (f', {one.diverged} diverged' if one.diverged else '')


def number(value: float) -> str:
    return '' if math.isnan(value) else f'{value:.2f}'


def signed(found: Interval) -> str:
    """A difference with its interval."""
    return f'{found.value:+.2f}{limits(found, "+.2f")}'


def percent(found: Interval) -> str:
    """A share with its interval."""
    if math.isinf(found.low):
        return f'{found.value:.0%} [any]'
    return f'{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]'


def limits(found: Interval, form: str = '.2f') -> str:
    """The limits of an interval, or nothing if there are none."""
    return '' if math.isinf(found.low) else f' [{found.low:{form}}, {found.high:{form}}]'


def devices(records: Sequence[Record]) -> list[str]:
    names = {'cpu': 'one CPU thread', 'cuda': 'one GPU'}
    return [names[one] for one in sorted({r.device for r in records})]


def draw(rows: Sequence[Row], records: Sequence[Record], path: Path) -> None:
    """Draws the gain of each method with its interval."""
    shown = [one for one in rows if not math.isnan(one.gain.value)]
    figure, axes = plt.subplots(figsize=(8, 1.3 + 0.3 * len(shown)))
    ends = [0.0]
    for place, one in enumerate(shown):
        found, colour = one.gain, COLOURS[one.gain.verdict]
        axes.axhline(place, color='0.94', zorder=0)
        if not math.isinf(found.low):
            axes.plot([found.low, found.high], [place, place], color=colour, lw=2)
            ends += [found.low, found.high]
        axes.plot(found.value, place, 'o', color=colour, ms=6)
        ends.append(found.value)
    axes.axvline(0, color='black', lw=1)
    axes.set_yticks(range(len(shown)), [f'{o.method} {weight_name(o.weight)}' for o in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    margin = 0.05 * (max(ends) - min(ends) or 1)
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.set_xlabel(f'gain over the student alone, points of {records[0].metric}')
    axes.set_title(title_of(records[0]), fontsize=11)
    used = [verdict for verdict in COLOURS if any(o.gain.verdict == verdict for o in shown)]
    handles = [
        plt.Line2D([], [], color=COLOURS[verdict], marker='o', label=verdict) for verdict in used
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, loc='best')
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis='y', length=0)
    figure.savefig(path, format='png', dpi=110, bbox_inches='tight', facecolor='white')
    plt.close(figure)
