"""What distillation costs, measured: losses, training steps, memory.

Every form of a loss or a step is run in turns in one process, after a check that they agree;
ratios are medians over the rounds, with quartiles. Prints tables and, for each target of the
project, PASS or the shortfall; --out keeps tables, numbers and a plot.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import (
    cases,
    epochs,
    losses,
    measure,
    memory,
    plots,
    report,
    scaling,
    steps,
    targets,
)
from mmkd_plugin.saving import write_text


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    about, _, more = __doc__.partition('\n\n')
    top = argparse.ArgumentParser('python -m benchmarks', description=about, epilog=more)
    commands = top.add_subparsers(dest='command', required=True)
    every_loss, every_pair = ', '.join(cases.registered_losses()), ', '.join(steps.PAIRS)
    for name, what, things, known in (
        ('losses', 'forward and backward, against other forms and the floor', 'LOSS', every_loss),
        ('step', "a training step: student, with teacher, MMRazor's, ours", 'PAIR', every_pair),
        (
            'epoch',
            'an epoch of small models with its data loading: student, ours, ours with cached views',
            'PAIR',
            ', '.join(epochs.SMALL),
        ),
        (
            'memory',
            'what losses keep for backward; peaks of losses and steps',
            'NAME',
            f'{every_loss}; {every_pair}',
        ),
        ('scaling', 'how the cost of each loss grows with its maps', 'LOSS', every_loss),
    ):
        one = commands.add_parser(name, help=what, description=what)
        one.add_argument('names', nargs='*', metavar=things, help=f'default: all ({known})')
        one.add_argument('--device', default='cpu', help='cpu (default), cuda, cuda:1')
        one.add_argument('--threads', type=int, help='CPU threads; default: 2, or 1 if alone')
        one.add_argument('--quick', action='store_true', help='small sizes, to see that it works')
        one.add_argument('--out', type=Path, help='folder for tables, numbers and plot')
        one.add_argument('--overwrite', action='store_true', help='replace files of that name')
        one.add_argument(
            '--add', action='store_true', help='keep what the files have of other cases'
        )
        one.add_argument(
            '--seconds',
            type=float,
            help='how long to measure each case; default: 6, steps and epochs 60, sweeps 1',
        )
        one.add_argument(
            '--clock',
            choices=('wall', 'cpu'),
            default='wall',
            help='cpu: seconds of all threads together, for a machine that others use too',
        )
        if name in ('losses', 'memory'):
            one.add_argument(
                '--middle', action='store_true', help='each loss once, at sizes that are alike'
            )
            one.add_argument('--no-compile', action='store_true', help='eager forms alone')
            one.add_argument('--memory', type=float, help='GiB; what needs more is not run')
    return top


def main(argv: list[str] | None = None) -> None:
    """Runs a command."""
    args = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = 170
    try:
        run(args, console)
    except (ValueError, OSError) as error:
        raise SystemExit(f'benchmarks {args.command}: {error}') from None


def run(args: argparse.Namespace, console: Console) -> report.Report:
    """Measures, prints, and keeps what was asked for.

    Raises:
        ValueError: If a name or an argument is wrong.
        FileExistsError: If a file would be replaced.
    """
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: PyTorch finds no GPU here; leave it out for the CPU')
    chosen = pick(args)
    files = output_files(args)
    torch.set_num_threads(args.threads or min(2, os.cpu_count() or 1))
    warnings.filterwarnings('ignore', category=UserWarning)
    outcome = report.Report(
        args.command,
        device.type,
        measure.describe_machine(device),
        dict(quick=args.quick, clock=args.clock, load=measure.load()),
    )
    if files:
        args.out.mkdir(parents=True, exist_ok=True)
    if args.add and files and files['json'].exists():
        keep_others(report.Report.load(files['json']), outcome)
    measure_all(args, device, chosen, outcome, console, files.get('json'))
    grids = report.grids(outcome)
    if args.command != 'scaling':
        grids.append(targets_grid(outcome))
    for grid in grids:
        console.print(grid.rich())
    for line in report.notes(outcome):
        console.print(line, style='dim', highlight=False)
    console.print(report.machine_line(outcome), style='dim', highlight=False)
    if files:
        write_text(files['md'], markdown(outcome, files))
        plots.draw(outcome, files['png'])
        console.print(f'written: {", ".join(map(str, files.values()))}', highlight=False)
    return outcome


def keep_others(before: report.Report, outcome: report.Report) -> None:
    """Takes over what an older report of the same kind has.

    Raises:
        ValueError: If it was measured in another way.
    """
    for name, old, new in (
        ('threads', before.machine, outcome.machine),
        ('clock', before.settings, outcome.settings),
        ('quick', before.settings, outcome.settings),
    ):
        if old.get(name) != new.get(name):
            raise ValueError(
                f'--add: the file there has {name} {old.get(name)}, and now it is {new.get(name)}; '
                'measure in the same way, or choose another --out'
            )
    outcome.rounds, outcome.footprints = before.rounds, before.footprints
    outcome.points = before.points


def pick(args: argparse.Namespace) -> list[cases.Case | steps.Pair | epochs.Small]:
    """What the names say, or everything.

    Raises:
        ValueError: If there is nothing of a name; with the nearest one.
    """
    if args.command == 'scaling' or getattr(args, 'middle', False):
        return scaling.pick(args.names, args.quick)
    if args.command == 'losses':
        return cases.pick(args.names, args.quick)
    if args.command == 'step':
        return cases.pick_pairs(args.names, steps.PAIRS)
    if args.command == 'epoch':
        return cases.pick_pairs(args.names, epochs.SMALL)
    pairs = [name for name in args.names if name in steps.PAIRS]
    others = [name for name in args.names if name not in pairs]
    for name in others:
        cases.check_name('loss or pair', name, [*cases.registered_losses(), *steps.PAIRS])
    found = cases.pick(others, args.quick) if others or not pairs else []
    return [*found, *(cases.pick_pairs(pairs, steps.PAIRS) if pairs or not others else [])]


def measure_all(
    args: argparse.Namespace,
    device: torch.device,
    chosen: Sequence[cases.Case | steps.Pair | epochs.Small],
    outcome: report.Report,
    console: Console,
    file: Path | None,
) -> None:
    """Fills the report, showing progress, and keeps it in a file after each case."""
    default = dict(losses=6, step=60, epoch=60, memory=0, scaling=1)[args.command]
    seconds = default if args.seconds is None else args.seconds
    clock = measure.CLOCKS[args.clock]
    if args.command in ('losses', 'memory'):
        allowed = int(args.memory * 2**30) if args.memory else measure.usable_bytes(device)
        settings = losses.Settings(device, seconds, not args.no_compile, allowed, clock)
        outcome.settings['memory'] = f'{allowed / 2**30:.1f} GiB'
    with (
        Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as progress,
        losses.compiling_anew(),
    ):
        bar = progress.add_task('', total=len(chosen))
        for number, one in enumerate(chosen, 1):
            is_pair = isinstance(one, steps.Pair)
            title = f'{one.name}, {one.where}' if isinstance(one, cases.Case) else one.title
            progress.update(bar, description=title)
            if not console.is_terminal:
                console.print(f'{number} of {len(chosen)}: {title}', highlight=False)
            if args.command == 'losses':
                outcome.put(losses.measure(one, settings))
            elif args.command == 'step':
                outcome.put(steps.measure(one, device, seconds, args.quick, clock))
            elif args.command == 'epoch':
                outcome.put(epochs.measure(one, device, seconds, args.quick, clock))
            elif args.command == 'scaling':
                outcome.put_points(scaling.measure(one, device, seconds, clock, args.quick))
            elif is_pair:
                outcome.put(memory.of_step(one, device, args.quick))
            else:
                outcome.put(memory.of_loss(one, settings))
            if file is not None:
                write_text(file, outcome.to_json())
            progress.advance(bar)


def output_files(args: argparse.Namespace) -> dict[str, Path]:
    """The files that will be written, by suffix.

    Raises:
        FileExistsError: If one is there and must not be replaced.
    """
    if args.out is None:
        return {}
    stem = f'{args.command}-{torch.device(args.device).type}'
    files = {suffix: args.out / f'{stem}.{suffix}' for suffix in ('json', 'md', 'png')}
    there = [file.name for file in files.values() if file.exists()]
    if there and not args.overwrite and not args.add:
        raise FileExistsError(
            f'{args.out} has {", ".join(there)} already; choose another --out, or add --overwrite '
            'or --add'
        )
    return files


def targets_grid(outcome: report.Report) -> report.Grid:
    """Each target that the command measures, and whether it is met."""
    return report.Grid('Targets', targets.Verdict._fields, targets.verdicts(outcome), words=3)


def markdown(outcome: report.Report, files: dict[str, Path]) -> str:
    """Everything on one page."""
    parts = [f'# `python -m benchmarks {outcome.command}`', report.machine_line(outcome)]
    parts += [f'![plot]({files["png"].name})']
    for grid in report.grids(outcome):
        parts += [f'## {grid.title}', grid.markdown()]
    parts += ['\n'.join(f'- {line}' for line in report.notes(outcome))]
    if outcome.command != 'scaling':
        parts += ['## Targets', targets_grid(outcome).markdown()]
    return '\n\n'.join(part for part in parts if part) + '\n'


if __name__ == '__main__':
    main()
