"""docs/results.md and its plots, from the finished runs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from benchmarks.gains import labels
from benchmarks.gains.intervals import mean_interval
from benchmarks.gains.plan import LONGER, TRIAL_SEED, TRIALS
from benchmarks.gains.records import Record
from benchmarks.gains.rows import (
    Row,
    gain,
    groups,
    limits,
    main_rows,
    number,
    percent,
    row,
    signed,
    students,
    title_of,
    weight_name,
    weights_of,
)
from benchmarks.gains.weights import against_grids, trials
from mmkd_plugin.saving import replacing, write_text

COLOURS = {'helps': '#0072B2', 'hurts': '#D55E00', 'inconclusive': '0.55'}

HEAD = f"""# What each method gains

`tools/reproduce.py` writes this page and its plots from
[runs.jsonl](../benchmarks/results/gains/runs.jsonl), which has one line for each finished run.
Nothing here is typed by hand.

## Rules

These rules were fixed before the first counted run, but for the two changes and the rule of the
grids, which have their dates.

- **Pairs.** With a seed, the distilled student has the same initial weights and sees the same
  batches as the student alone. The gain is the difference of their scores. All seeds have the same
  teacher.
- **Budget.** Each method gets the same {len(TRIALS)} trials, which are scored on the validation
  split: `loss_weight` {', '.join(f'`{t}`' for t in TRIALS)}, the share of the task's gradient that
  each term of the recipe gets ([automatic weights](distiller.md#weights-that-find-themselves);
  `auto:0.5` is short for `loss_weight=dict(auto=0.5)`).
  The trials have a seed of their own ({TRIAL_SEED}), which no result has. The best share is then
  run with all seeds. If all end below the student alone, the recipe's own weight gets a trial, too.
  Nothing else is tuned. The student alone keeps the settings of its config, from which the recipes
  inherit theirs. The range of shares was moved once, on 2026-11-29: it had
  been 0.1 to 2.5, and the first two methods (CWD on BCCD and on CamVid) were best at its end. They
  got the new trial too. The trial of the recipe's own weight came in on 2026-11-30, when all trials
  of FRSKD and RKD had ended below the student in detection; both got it.
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
  because other programs share the machine. Runs of several machines are compared in multiples of
  a step of the teacher, which each machine trains first. That is rough: programs that share a core
  slow each other. The last column compares the two students.
- **Grids.** They compare `loss_weight='auto'` with five fixed weights, for seven methods on
  DigitScenes, in both tasks, and for three of them on CamVid and BCCD. The five are the power of
  ten next to the weight that `auto` found with seed 0, the two powers below it and the two above.
  Of each weight there is one run, with seed 0. This was fixed on 2026-11-30, before the first of
  these runs; a method is in the table when all six of its runs are finished.
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
| `--report` | writes this page and the weights of the recipes again |

Recipes are found by their names in `configs/`, so a new recipe is in the next plan. A recipe ships
with the weight of its row, if that has several seeds.
"""


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
    for records_of in groups(records, few_labels=True):
        for method in labels.methods_of(records_of):
            first = next(r for r in records_of if r.method == method)
            with replacing(images / labels.plot_name(first)) as (beside,):
                labels.draw(records_of, method, beside)
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
    parts += [*against_grids(found), *trials(found)]
    if not found:
        parts.append('## Tables\n\nNo runs are finished yet.\n')
    for one in found:
        parts.append(section(one, folder))
    parts.append(labels.section(records, folder))
    return '\n'.join(parts)


def plot_name(record: Record) -> str:
    """The file of its plot."""
    return f'gains-{record.data}-{record.student.partition("_")[0]}.png'.replace('_', '-')


def section(records: Sequence[Record], folder: str) -> str:
    """A table with its plot."""
    first, alone = records[0], students(records)
    lines = [f'## {title_of(first)}', '']
    teacher = [r.score for r in records if r.method == 'teacher' and r.score is not None]
    split = {'val': 'validation', 'test': 'test'}[first.split]
    facts = [f'Score: {first.metric} on the {split} split, in percent.']
    if alone:
        found = mean_interval([r.score for r in alone.values()])
        facts.append(f'Student alone: {number(found.value)}{limits(found)}, {len(alone)} seeds.')
    if teacher:
        facts.append(f'Teacher: {", ".join(map(number, teacher))}.')
    hours = sum(r.step_seconds * r.iterations for r in records) / 3600
    facts.append(
        f'{len(records)} runs, {hours:.1f} hours of {" and ".join(devices(records))} in sum, '
        'at the speed of the first machine.'
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
