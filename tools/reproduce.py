"""Train every recipe against its student alone, and write what each method gains.

``make reproduce`` runs this. Run it again after an interruption: finished runs are lines in
runs.jsonl, and the others go on from their last checkpoints.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from benchmarks.gains import overview, page, recipes, records, tables
from benchmarks.gains.plan import TRIALS, Budget, Run, chosen, estimate, find, names_of, needs, plan
from benchmarks.gains.running import Place, perform, teacher_file
from benchmarks.gains.training import RunError
from mmkd_plugin.cli import (
    UsageError,
    check_file,
    check_folder,
    check_number,
    plain_errors,
    read_config,
)
from mmkd_plugin.words import did_you_mean

RESULTS = tables.ROOT / 'benchmarks' / 'results' / 'gains' / 'runs.jsonl'
#: What ``--quick`` shows: two methods that are cheap, two seeds, a tenth of the iterations.
QUICK = dict(only=['digit_scenes/segmentation/cwd-*'], seeds=2, length=0.2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--dry-run', action='store_true', help='print the plan, and train nothing')
    parser.add_argument(
        '--report',
        action='store_true',
        help='write pages and weights of recipes from what is there, and train nothing',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='a few minutes, to see that it works; counts for nothing',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='NAME',
        help='recipes to run, such as cwd-neck, "digit_scenes/cwd*" or "*/detection/*"; '
        'default: all, but for those of an online teacher and its caches, "camvid_zoo/*" and '
        '"digit_scenes_zoo/*"',
    )
    parser.add_argument(
        '--seeds', type=int, help='seeds of each method; default: as the tables say'
    )
    parser.add_argument(
        '--weights',
        nargs='+',
        type=weight,
        metavar='WEIGHT',
        help='a grid instead of trials: loss weights, `auto`, `auto:0.3` or `recipe`; each with '
        'all seeds',
    )
    parser.add_argument('--no-trials', action='store_true', help='the weights of the recipes alone')
    parser.add_argument('--no-longer', action='store_true', help='no longer training of students')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--jobs', type=int, help='processes of one thread each; default: the cores')
    where.add_argument(
        '--gpus', nargs='+', type=int, metavar='ID', help='GPUs to use, one process on each'
    )
    parser.add_argument('--results', type=Path, default=RESULTS, help='file of the finished runs')
    parser.add_argument('--work-dir', type=Path, help='folder of the runs; default: work_dirs/...')
    return parser.parse_args()


def weight(text: str) -> float | str:
    """Reads a weight of ``--weights``."""
    if text == 'recipe':
        return text
    word, colon, share = text.partition(':')
    try:
        number = float(share if colon else 1) if word == 'auto' else float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(
            f'{text} is neither a weight above 0, `auto`, `auto:0.3` nor `recipe`'
        )
    return text if word == 'auto' else number


def main() -> None:
    with plain_errors():
        args = parse_args()
        check_number(args.jobs, '--jobs', 1)
        check_number(args.seeds, '--seeds', 1)
        for number in args.gpus or ():
            check_number(number, '--gpus', 0)
        check_file(args.results, '--results')
        if args.weights and args.no_trials:
            raise UsageError('--weights has no trials; leave --no-trials out')
        defaults(args)
        console = Console()
        if not console.is_terminal:
            console.width = 130
        if args.report:
            write_page(args, console)
            return
        found = pick(args)
        budget = Budget(
            tuple(args.weights) if args.weights else None,
            ('recipe',) if args.no_trials else TRIALS,
            not args.no_longer,
        )
        done = records.read(args.results)
        jobs = len(args.gpus) if args.gpus else args.jobs
        console.print(summary(found, done, budget, args.work_dir, jobs))
        if args.dry_run:
            return
        try:
            for data in dict.fromkeys(table.data for table in found):
                if data.make is not None:
                    data.make()
            failed = Workers(found, budget, args, console).run()
        except RunError as error:
            raise UsageError(str(error)) from None
        write_page(args, console)
        if failed:
            raise UsageError(
                '\n'.join([f'{len(failed)} runs failed; the same command tries again', *failed])
            )


def defaults(args: argparse.Namespace) -> None:
    """Fills in what depends on other arguments."""
    name = 'reproduce-quick' if args.quick else 'reproduce'
    args.work_dir = args.work_dir or Path('work_dirs', name)
    check_folder(args.work_dir, '--work-dir')
    args.jobs = args.jobs or os.cpu_count() or 1
    if args.quick:
        args.only = args.only or QUICK['only']
        args.seeds = args.seeds or QUICK['seeds']
        args.no_trials = not args.weights
        if args.results == RESULTS:
            args.results = args.work_dir / RESULTS.name


def pick(args: argparse.Namespace) -> list[tables.Table]:
    """The tables, or parts of them, that are asked for.

    Raises:
        UsageError: If there are none.
    """
    factor = QUICK['length'] if args.quick else 1
    data = [
        replace(
            one,
            seeds=args.seeds or one.seeds,
            few_seeds=args.seeds or one.few_seeds,
            length=one.length * factor,
            teacher_length=one.teacher_length * factor,
        )
        for one in tables.DATA
    ]
    every = tables.find_tables(data)
    for pattern in args.only:
        if not any(chosen(table, [pattern]) for table in every):
            known = {n for t in every for m in (*t.recipes, *t.few) for n in names_of(t, m)}
            raise UsageError(
                f'--only: no recipe is called {pattern}. A name is method, data/method or '
                'data/task/method; * is any text, and configs/README.md lists the methods'
                f'{did_you_mean(pattern, sorted(known))}'
            )
    found = [part for table in every if (part := chosen(table, args.only))]
    here = [table for table in found if table.data.make or root_of(table).is_dir()]
    for name, root in {t.data.title: root_of(t) for t in found if t not in here}.items():
        print(f'{name} is left out: there is no {root} (configs/README.md says how to make it)')
    if not here:
        raise UsageError('there is no data for what --only names')
    return with_weights(here)


def with_weights(found: Sequence[tables.Table]) -> list[tables.Table]:
    """The tables without the recipes whose teacher is not installed; says which and why.

    Raises:
        UsageError: If nothing remains.
    """
    lines, parts = [], []
    for table in found:
        every = {**table.recipes, **table.few}
        reasons = {method: tables.lacks(table, method) for method in every}
        lines += [f'{every[m].stem} is left out: {why}' for m, why in reasons.items() if why]
        recipes, few = (
            {m: path for m, path in those.items() if not reasons[m]}
            for those in (table.recipes, table.few)
        )
        parts.append(replace(table, recipes=recipes, few=few))
    kept = [table for table in parts if table.recipes or table.few]
    if not kept:
        raise UsageError('\n'.join(lines))
    for line in lines:
        print(line)
    return kept


def root_of(table: tables.Table) -> Path:
    """The folder of the training data of a table."""
    dataset = read_config(str(table.student)).train_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return Path(dataset.data_root)


def is_done(run: Run, done: Sequence[records.Record], work_dir: Path) -> bool:
    """Whether a run is finished; a teacher must be there as a file, too."""
    there = run.method != 'teacher' or teacher_file(run.table, work_dir, run.seed).exists()
    return there and find(run, done) is not None


def open_runs(
    found: Sequence[tables.Table], done: Sequence[records.Record], budget: Budget, work_dir: Path
) -> list[Run]:
    """The runs that are not finished, in their order; a teacher only if it is still needed."""
    runs = []
    for table in found:
        left = [run for run in plan(table, done, budget) if not is_done(run, done, work_dir)]
        needed = {one for run in left for one in needs(run)}
        runs += [
            run
            for run in left
            if run.method != 'teacher' or run in needed or find(run, done) is None
        ]
    return runs


def summary(
    found: Sequence[tables.Table],
    done: Sequence[records.Record],
    budget: Budget,
    work_dir: Path,
    jobs: int,
) -> Grid:
    """The plan with its time."""
    grid = Grid(title='The plan')
    for column in ('data', 'task', 'student', 'methods', 'runs', 'finished', 'hours left'):
        grid.add_column(
            column, justify='left' if column in ('data', 'task', 'student') else 'right'
        )
    total = 0.0
    for table in found:
        runs = plan(table, done, budget)
        left = open_runs([table], done, budget, work_dir)
        seconds = sum(estimate(run, done) for run in left)
        total += seconds
        grid.add_row(
            table.data.title,
            table.task,
            table.student.stem.partition('_1')[0],
            str(len(table.recipes) + len(table.few)),
            str(len(runs)),
            str(len(runs) - len(left)),
            f'{seconds / 3600:.1f}',
        )
    each = f', about {total / 3600 / jobs:.1f} hours with {jobs} side by side' if jobs > 1 else ''
    grid.caption = f'{total / 3600:.1f} hours of one process are left{each}'
    return grid


class Workers:
    """Runs the plan, several trainings side by side.

    Args:
        found (Sequence[Table]): The tables.
        budget (Budget): How much is run.
        args (argparse.Namespace): The arguments of the tool.
        console (Console): Where to show how far it is.
    """

    def __init__(
        self,
        found: Sequence[tables.Table],
        budget: Budget,
        args: argparse.Namespace,
        console: Console,
    ) -> None:
        self.found, self.budget, self.args, self.console = found, budget, args, console
        self.done = records.read(args.results)
        self.busy: set[Run] = set()
        self.failed: dict[Run, str] = {}
        self.ended: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        places = [{'CUDA_VISIBLE_DEVICES': str(gpu)} for gpu in args.gpus or []]
        places = places or [{'CUDA_VISIBLE_DEVICES': ''}] * args.jobs
        one_thread = {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
        self.free = [Place(args.work_dir, {**place, **one_thread}) for place in places]
        for place in self.free[1:]:
            place.processes = self.free[0].processes
        self.processes = self.free[0].processes

    def run(self) -> list[str]:
        """Works until nothing can start; returns what failed, a few lines for each run.

        Raises:
            RunError: If it was told to stop.
        """
        with progress_bar(self.console) as self.bar, stopped_by_signals(self.stop):
            self.whole = self.bar.add_task('all runs', total=None, note='')
            while self.start_some() or self.busy:
                ended = self.ended.get()
                if ended is not None:
                    self.take(*ended)
        if self.processes.stopped:
            raise RunError('stopped; the same command goes on from here')
        return [f'{run}: {text}' for run, text in self.failed.items()]

    def stop(self) -> None:
        """Ends all processes; what they have saved stays."""
        self.processes.stop()
        self.ended.put(None)

    def start_some(self) -> bool:
        """Starts what can start; returns whether it did."""
        left = open_runs(self.found, self.done, self.budget, self.args.work_dir)
        self.show(left)
        started = False
        for run in left:
            if not self.free or self.processes.stopped:
                break
            waits = not run.known or any(
                not is_done(one, self.done, self.args.work_dir) for one in needs(run)
            )
            if not waits and run not in self.busy and run not in self.failed:
                started = True
                self.busy.add(run)
                place, seen = self.free.pop(), tuple(self.done)
                bar = self.bar.add_task(str(run), total=None, note='starting')
                threading.Thread(target=self.work, args=(run, place, seen, bar)).start()
        return started

    def work(self, run: Run, place: Place, seen: Sequence[records.Record], bar: TaskID) -> None:
        """Does a run, in a thread of its own, and hands in what came out."""

        def watch(done: int, total: int, loss: float) -> None:
            self.bar.update(bar, completed=done, total=total, note=f'loss {loss:.2f}')

        try:
            outcome = perform(run, seen, place, watch)
        except Exception as error:
            outcome = error
        self.ended.put((run, place, bar, outcome))

    def take(
        self, run: Run, place: Place, bar: TaskID, outcome: records.Record | Exception
    ) -> None:
        """Keeps the record of a run that has ended, or its error."""
        self.busy.discard(run)
        self.free.append(place)
        self.bar.remove_task(bar)
        if isinstance(outcome, records.Record):
            records.append(self.args.results, outcome)
            self.done.append(outcome)
            score = 'diverged' if outcome.score is None else f'{outcome.score:.2f}'
            self.say(f'{run}: {outcome.metric} {score}, {outcome.seconds / 60:.1f} min')
        elif not self.processes.stopped:
            self.failed[run] = str(outcome)
            self.say(f'{run} failed: {outcome}')

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, left: Sequence[Run]) -> None:
        """Shows how much is done, and about how long the rest takes."""
        seconds = sum(estimate(run, self.done) for run in left if run not in self.failed)
        hours = seconds / 3600 / (len(self.free) + len(self.busy))
        count = sum(len(plan(table, self.done, self.budget)) for table in self.found)
        note = f'{count - len(left)} of {count}, about {hours:.1f} h left'
        self.bar.update(self.whole, completed=count - len(left), total=count, note=note)
        if not self.console.is_terminal:
            self.say(f'[{datetime.now():%d %H:%M}] {note}')


def progress_bar(console: Console) -> Progress:
    """Makes a bar for everything and one for each run."""
    return Progress(
        TextColumn('{task.description}', markup=False),
        BarColumn(bar_width=20),
        TextColumn('{task.percentage:>3.0f}%'),
        TimeElapsedColumn(),
        TextColumn('{task.fields[note]}'),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls a function when the program is told to end, by Ctrl+C too."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop()) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def write_page(args: argparse.Namespace, console: Console) -> None:
    """Writes the page and its plots: docs/results.md, or beside other results."""
    if args.results == RESULTS:
        path, images = tables.ROOT / 'docs' / 'results.md', tables.ROOT / 'docs' / 'images'
    else:
        path, images = args.results.with_name('results.md'), args.results.parent
    found = records.read(args.results)
    page.write(found, path, images)
    if args.results == RESULTS:
        overview.write(found)
        recipes.write(found)
    console.print(f'written: {path}', highlight=False)


if __name__ == '__main__':
    main()
