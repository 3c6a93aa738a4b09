"""Which runs there are, which can start, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from statistics import fmean, median

from benchmarks.gains.records import Record
from benchmarks.gains.split import FEW, TRIED, TRIED_AT, is_trial, purpose_of, share_of
from benchmarks.gains.tables import Table

#: Loss weights that are tried, one trial each, and the seed of these trials. Results have other
#: seeds. A share of the task's gradient means the same for every loss; a multiple of a weight that
#: was found for other data and models does not.
TRIALS = ('auto:0.5', 'auto:2.5', 'auto:12.5')
TRIAL_SEED = 100
#: A student that trains as long in wall time as a distilled one has one of these multiples of the
#: iterations, the next one up.
LONGER = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
#: Seconds of an iteration on one core, until a run of the table has been measured.
GUESS = {'segmentation': 0.2, 'detection': 0.15}
GUESSED_RATIO = {'teacher': 2.2, 'student': 1.0, 'method': 1.7, 'few': 3.0}
ALONE = ('teacher', 'student', 'longer')


@dataclass(frozen=True)
class Run:
    """A training.

    Args:
        table (Table): Where it belongs.
        method (str): The recipe, or one of ``ALONE``.
        seed (int): Its seed. Defaults to 0.
        weight (float | str, optional): As in :class:`Record`; None if it is not chosen yet, or
            there is none. Defaults to None.
        length (float, optional): As in :class:`Record`; None if it is not known yet. Defaults to 1.
        purpose (str): As in :class:`Record`. Defaults to ``'counted'``.
    """

    table: Table
    method: str
    seed: int = 0
    weight: float | str | None = None
    length: float | None = 1.0
    purpose: str = 'counted'

    @property
    def known(self) -> bool:
        """Whether all of it is settled."""
        settled = self.method in ALONE or self.weight is not None
        return settled and self.length is not None

    def is_of(self, record: Record) -> bool:
        """Whether a record is that of this run."""
        return _is_of(self.table, record) and (
            (record.method, record.seed, record.weight, record.length, record.purpose)
            == (self.method, self.seed, self.weight, self.length, self.purpose)
        )

    def __str__(self) -> str:
        weight = '' if self.weight is None else f' {self.weight}'
        longer = f' ×{self.length / self.table.data.length:g}' if self.method == 'longer' else ''
        trial = ' trial' if is_trial(self.purpose) else f' seed {self.seed}'
        share = share_of(self.purpose)
        trial = trial if share is None else f' {share:.0%} of the labels{trial}'
        return f'{self.table.data.name} {self.table.task[:3]} {self.method}{weight}{longer}{trial}'


@dataclass(frozen=True)
class Budget:
    """How much is run.

    Args:
        weights (tuple, optional): Weights that all count, for a grid. Defaults to None: the trials
            choose one weight for each method.
        trials (tuple[float | str]): Weights that are tried. Without any, the recipes' own count.
            Defaults to ``TRIALS``.
        longer (bool): Whether the student alone is trained longer, too. Defaults to True.
    """

    weights: tuple[float | str, ...] | None = None
    trials: tuple[float | str, ...] = TRIALS
    longer: bool = True


def names_of(table: Table, method: str) -> tuple[str, ...]:
    """The names by which a recipe can be asked for: method, data/method, data/task/method."""
    data, task = table.data.name, table.task
    full = f'{data}/{method}', f'{data}/{task}/{method}', f'{table.name}/{method}'
    return full if table.data.augment is not None else (method, *full)


def chosen(table: Table, only: Sequence[str]) -> Table | None:
    """The part of a table that patterns name.

    Args:
        table (Table): A table.
        only (Sequence[str]): Patterns of :func:`names_of`; none name everything.

    Returns:
        Table, optional: None if nothing of it is named.
    """
    if table.data.augment is not None:
        only = [one for one in only if one.startswith(f'{table.data.name}/')]
        if not only:
            return None
    recipes, few = (
        {
            method: path
            for method, path in every.items()
            if not only
            or any(fnmatch(name, one) for one in only for name in names_of(table, method))
        }
        for every in (table.recipes, table.few)
    )
    return replace(table, recipes=recipes, few=few) if recipes or few else None


def plan(table: Table, records: Sequence[Record], budget: Budget) -> list[Run]:
    """All runs of a table, in their order; what results decide is left open until they are there.

    Args:
        table (Table): The table.
        records (Sequence[Record]): The finished runs.
        budget (Budget): How much is run.
    """
    length, seeds = table.data.length, range(table.data.seeds)
    mine = [record for record in records if _is_of(table, record)]
    runs = [Run(table, 'student', seed, length=length) for seed in seeds]
    methods = (*table.recipes, *table.few)
    teachers = max((table.taught.get(method, 0) for method in methods), default=0)
    runs = [*_teachers(table, teachers), *runs]
    weights: dict[str, tuple[float | str | None, ...]] = {}
    for method in table.recipes:
        if budget.weights is not None:
            weights[method] = budget.weights
            continue
        weights[method] = (best_weight(table, method, mine, budget),)
        runs += [
            Run(table, method, TRIAL_SEED, weight, length, 'trial')
            for weight in tried_weights(table, method, mine, budget)
        ]
    counted = [
        Run(table, method, seed, weight, length)
        for seed in seeds
        for method, those in weights.items()
        for weight in those
    ]
    runs += counted
    if budget.longer and budget.weights is None:
        factors, open_ones = set(), False
        for method in table.recipes:
            ratio = time_ratio(table, method, weights[method][0], mine)
            open_ones |= ratio is None
            factors |= {longer_factor(ratio)} if ratio else set()
        lengths: list[float | None] = [length * factor for factor in sorted(factors - {1.0})]
        if open_ones and not lengths:
            lengths = [None, None]  # as a guess, methods need two multiples of the time
        runs += [Run(table, 'longer', seed, length=one) for seed in seeds for one in lengths]
    return runs + few_labels(table, mine)


def few_labels(table: Table, records: Sequence[Record]) -> list[Run]:
    """The runs with a part of the labels, in their order.

    Args:
        table (Table): The table.
        records (Sequence[Record]): The finished runs of it.
    """
    length, seeds, runs = table.data.length, range(table.data.few_seeds), []
    trial = purpose_of(TRIED_AT, trial=True)
    weights: dict[str, float | str | None] = {}
    for method in table.few:
        runs += [Run(table, method, TRIAL_SEED, weight, length, trial) for weight in TRIED]
        tried = [r for r in records if (r.method, r.purpose, r.length) == (method, trial, length)]
        scores = {r.weight: r.val_score for r in tried}
        weights[method] = best_of(scores) if set(TRIED) <= set(scores) else None
    for seed in seeds if table.few else ():
        for purpose in map(purpose_of, FEW):
            runs.append(Run(table, 'student', seed, length=length, purpose=purpose))
            runs += [Run(table, m, seed, w, length, purpose) for m, w in weights.items()]
    return runs


def best_weight(
    table: Table, method: str, records: Sequence[Record], budget: Budget
) -> float | str | None:
    """The weight with the best validation score of a method's trials; None until all are done.

    The recipe's own weight gets a trial, too, if all others end below the student alone.
    """
    if len(budget.trials) < 2:
        return budget.trials[0] if budget.trials else 'recipe'
    scores = {r.weight: r.val_score for r in records if _is_trial(table, method, r)}
    done = set(tried_weights(table, method, records, budget)) <= set(scores)
    return best_of(scores) if done else None


def tried_weights(
    table: Table, method: str, records: Sequence[Record], budget: Budget
) -> tuple[float | str, ...]:
    """The weights of a method that are tried, as far as results settle them.

    Args:
        table (Table): The table.
        method (str): The method.
        records (Sequence[Record]): The finished runs of the table.
        budget (Budget): How much is run.
    """
    if len(budget.trials) < 2:
        return ()
    scores = {r.weight: r.val_score for r in records if _is_trial(table, method, r)}
    alone = [
        r.val_score
        for r in records
        if (r.method, r.purpose, r.length) == ('student', 'counted', table.data.length)
    ]
    first = {weight: score for weight, score in scores.items() if weight in budget.trials}
    another = set(budget.trials) <= set(first) and is_below(first, alone)
    return (*budget.trials, 'recipe') if another else tuple(budget.trials)


def is_below(scores: Mapping[float | str, float | None], alone: Sequence[float | None]) -> bool:
    """Whether even the best trial ends below the mean of the students alone.

    Args:
        scores (Mapping[float | str, float | None]): Validation scores of the trials, by weight.
        alone (Sequence[float | None]): Validation scores of the students alone.

    Examples:
        >>> is_below({'auto:0.5': 5.8, 'auto:2.5': None}, [24.0, 25.0])
        True
        >>> is_below({'auto:0.5': 5.8, 'auto:2.5': 24.6}, [24.0, 25.0])
        False
    """
    known = [score for score in alone if score is not None]
    best = scores[best_of(scores)]
    return bool(known) and (best is None or best < fmean(known))


def best_of(scores: Mapping[float | str, float | None]) -> float | str:
    """The weight with the best score of its trial.

    Among equals it is the one in the middle, and never the recipe's own. A trial that diverged is
    the worst.

    Args:
        scores (Mapping[float | str, float | None]): Validation scores by weight.

    Examples:
        >>> best_of({'auto:0.1': 41.0, 'auto:0.5': 42.5, 'auto:2.5': None})
        'auto:0.5'
    """
    size = {weight: _size(weight) for weight in scores if weight != 'recipe'}
    middle = fmean(size.values())

    def rank(weight: float | str) -> tuple[float, float]:
        score = scores[weight]
        return (-math.inf if score is None else score, -abs(size.get(weight, math.inf) - middle))

    return max(scores, key=rank)


def _size(weight: float | str) -> float:
    """Logarithm of a weight or share."""
    return math.log(float(weight.partition(':')[2]) if isinstance(weight, str) else weight)


def time_ratio(
    table: Table, method: str, weight: float | str | None, records: Sequence[Record]
) -> float | None:
    """Time of an iteration, in multiples of the student's alone; None until all runs are done.

    It is the median over the seeds of method and student each, which ran at different times and on
    different machines, see :func:`on_one_machine`.
    """
    if weight is None:
        return None
    steps, records = [], on_one_machine(records)
    for name, of in ((method, weight), ('student', None)):
        runs = [Run(table, name, seed, of, table.data.length) for seed in range(table.data.seeds)]
        found = [find(run, records) for run in runs]
        if None in found:
            return None
        times = [record.step_seconds for record in found if record.score is not None]
        if not times:
            return None if name == 'student' else 1.0  # it diverged with every seed
        steps.append(median(times))
    return steps[0] / steps[1]


def on_one_machine(records: Sequence[Record]) -> list[Record]:
    """Times of iterations as the first machine would have taken them.

    Each machine trains the teacher before anything else that needs it, so the last teacher above a
    record says how fast its machine was.

    Args:
        records (Sequence[Record]): Those of a table, in the order in which they were finished.
    """
    first = last = None
    found = []
    for record in records:
        if (record.method, record.seed) == ('teacher', 0) and record.step_seconds:
            last = record.step_seconds
            first = first or last
        scale = first / last if last else 1.0
        found.append(replace(record, step_seconds=record.step_seconds * scale))
    return found


def longer_factor(ratio: float) -> float:
    """The multiple of the iterations for a ratio of times; a twentieth more time is no more."""
    if ratio <= 1.05:
        return 1.0
    return next((factor for factor in LONGER if factor >= ratio), LONGER[-1])


def find(run: Run, records: Iterable[Record]) -> Record | None:
    """The record of a run, if it is finished."""
    return next((record for record in records if run.is_of(record)), None)


def needs(run: Run) -> list[Run]:
    """The runs that must be finished before one can start."""
    length, found = run.table.data.length, []
    if run.method in run.table.taught:
        found += _teachers(run.table, run.table.taught[run.method])
    if run.method not in ('teacher', 'student') and not is_trial(run.purpose):
        found.append(Run(run.table, 'student', run.seed, length=length, purpose=run.purpose))
    return found


def _teachers(table: Table, count: int) -> list[Run]:
    return [Run(table, 'teacher', seed, length=table.data.teacher_length) for seed in range(count)]


def estimate(run: Run, records: Sequence[Record]) -> float:
    """Seconds that a run takes, if nothing else runs: as measured in its table, else guessed."""
    mine = [r for r in records if _is_of(run.table, r) and r.step_seconds]
    length = run.length or run.table.data.length * 2
    name = 'student' if run.method == 'longer' else run.method
    iterations = run.table.iterations[name] * length
    same = [r.step_seconds for r in mine if r.method == name]
    if same:
        return median(same) * iterations

    def kind(method: str) -> str:
        if method in GUESSED_RATIO:
            return method
        return 'few' if method in run.table.few else 'method'

    others = [r.step_seconds / GUESSED_RATIO[kind(r.method)] for r in mine if r.method != 'longer']
    step = fmean(others) if others else GUESS[run.table.task]
    return step * GUESSED_RATIO[kind(name)] * iterations


def _is_trial(table: Table, method: str, record: Record) -> bool:
    return _is_of(table, record) and (
        (record.method, record.purpose, record.length) == (method, 'trial', table.data.length)
    )


def _is_of(table: Table, record: Record) -> bool:
    return (record.data, record.task, record.student) == (
        table.data.name,
        table.task,
        table.student.stem,
    )
