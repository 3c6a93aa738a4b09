"""The finished runs of a table: a row for each method at each weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.gains.intervals import Interval, mean_interval, ratio_interval
from benchmarks.gains.plan import ALONE, TRIALS, best_of, longer_factor, on_one_machine
from benchmarks.gains.records import Record
from benchmarks.gains.split import share_of
from benchmarks.gains.tables import DATA


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


def groups(records: Sequence[Record], few_labels: bool = False) -> list[list[Record]]:
    """The runs of each table, in the order of the data sets; repeated runs count once.

    Their times are those of one machine.

    Args:
        records (Sequence[Record]): All finished runs.
        few_labels (bool): Whether runs with a part of the labels are among them. Defaults to False.
    """
    order = {data.name: number for number, data in enumerate(DATA)}
    found: dict[tuple, list[Record]] = {}
    for record in records:
        if share_of(record.purpose) is not None and not few_labels:
            continue
        table = (order.get(record.data, len(order)), record.data, record.task, record.student)
        found.setdefault(table, []).append(record)
    return [_once(on_one_machine(found[table])) for table in sorted(found)]


def _once(records: Sequence[Record]) -> list[Record]:
    """Leaves repeated runs out."""
    runs: dict[tuple, Record] = {}
    for r in records:
        runs.setdefault((r.method, r.purpose, r.weight, r.seed, r.length), r)
    return list(runs.values())


def title_of(record: Record) -> str:
    """The name of a table."""
    titles = {data.name: data.title for data in DATA}
    model = record.student.partition('_')[0]
    return f'{titles.get(record.data, record.data)}, {record.task}: {model}'


def students(records: Sequence[Record]) -> dict[int, Record]:
    """The runs of the student alone with all labels, by seed."""
    return {
        r.seed: r
        for r in records
        if (r.method, r.purpose) == ('student', 'counted') and r.score is not None
    }


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
    """The weight that the trials chose; without all trials the recipe's own, `auto`, or another."""
    counted = weights_of(records, method)
    trials = [r for r in records if r.method == method and r.purpose == 'trial']
    scores = {r.weight: r.val_score for r in trials}
    if set(TRIALS) <= set(scores) and best_of(scores) in counted:
        return best_of(scores)
    return next((usual for usual in ('recipe', 'auto') if usual in counted), counted[0])


def main_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each method at its weight, the largest gain first."""
    methods = {r.method for r in records if r.purpose == 'counted'} - set(ALONE)
    rows = [row(records, method, tuned_weight(records, method)) for method in sorted(methods)]
    known = [one for one in rows if one is not None]
    return sorted(known, key=lambda one: math.inf if math.isnan(one.score) else -one.gain.value)


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
