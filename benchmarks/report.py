"""What was measured, as tables, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.measure import Footprint, Rounds, Spread


@dataclass
class Report:
    """The outcome of one command.

    Args:
        command (str): ``'losses'``, ``'step'``, ``'epoch'``, ``'memory'`` or ``'scaling'``.
        device (str): ``'cpu'`` or ``'cuda'``.
        machine (dict[str, str]): What :func:`benchmarks.measure.describe_machine` says.
        settings (dict): Options of the command.
        rounds (list[Rounds]): Times.
        footprints (list[Footprint]): Bytes.
        points (list[dict]): Of ``scaling``: what was varied, to which value, and the seconds.
    """

    command: str
    device: str
    machine: dict[str, str]
    settings: dict[str, Any]
    rounds: list[Rounds] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def put(self, found: Rounds | Footprint) -> None:
        """Adds what was measured of a case; it takes the place of an older one."""
        listed = self.rounds if isinstance(found, Rounds) else self.footprints
        same = [
            n for n, one in enumerate(listed) if one.group == found.group and one.case == found.case
        ]
        if same:
            listed[same[0]] = found
        else:
            listed.append(found)

    def put_points(self, points: Sequence[dict[str, Any]]) -> None:
        """Adds the points of a loss; they take the place of older ones."""
        losses = {point['loss'] for point in points}
        self.points = [point for point in self.points if point['loss'] not in losses]
        self.points += points

    def to_json(self) -> str:
        """As text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Reads what :meth:`to_json` wrote."""
        data = json.loads(text)
        data['rounds'] = [Rounds(**one) for one in data['rounds']]
        data['footprints'] = [Footprint(**one) for one in data['footprints']]
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        return cls.from_json(Path(path).read_text(encoding='utf-8'))


@dataclass(frozen=True)
class Grid:
    """A table of words, for the terminal and for Markdown; the first column reads to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def rich(self) -> Table:
        table = Table(title=self.title, box=box.SIMPLE_HEAD, title_justify='left')
        for number, name in enumerate(self.head):
            justify = 'left' if number < self.words else 'right'
            table.add_column(name, justify=justify, overflow='fold')
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ['---' if number < self.words else '--:' for number in range(len(self.head))]
        lines = [self.head, rule, *self.rows]
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def times(value: float) -> str:
    """``'5.20×'``, three digits."""
    return f'{value:.2f}×' if value < 10 else f'{value:.1f}×' if value < 100 else f'{value:.0f}×'


def spread(ratio: Spread | None) -> str:
    """Median and quartiles, ``'5.2× (4.9–5.6)'``."""
    if ratio is None:
        return ''
    return f'{times(ratio.median)} ({times(ratio.low)[:-1]}–{times(ratio.high)[:-1]})'


def milliseconds(seconds: Spread | None) -> str:
    """Three digits of the median."""
    return '' if seconds is None else f'{float(f"{seconds.median * 1e3:.3g}"):,g}'


def megabytes(size: float) -> str:
    """Three digits, in units of 10⁶ bytes."""
    return f'{float(f"{size / 1e6:.3g}"):,g}'


def grids(report: Report) -> list[Grid]:
    """The tables of a report."""
    if report.command == 'losses':
        return [_loss_times(report), _compiling(report)]
    if report.command == 'step':
        return [_step_times(report)]
    if report.command == 'epoch':
        return [_epoch_times(report)]
    if report.command == 'memory':
        return _footprints(report)
    return [_exponents(report)]


def _times(report: Report, variants: Sequence[str], ratios: Sequence[tuple[str, str]]) -> Grid:
    """Milliseconds of each variant, and ratios of pairs of them."""
    head = ['what', 'maps' if report.command == 'losses' else 'batch']
    head += [f'{name}, ms' for name in variants]
    head += [f'{slow} : {fast}' for slow, fast in ratios]
    rows = []
    for one in report.rounds:
        cells = [
            milliseconds(one.time(name)) or ('–' if name in one.notes else '') for name in variants
        ]
        cells += [spread(one.ratio(slow, fast)) for slow, fast in ratios]
        rows.append([one.group, one.case, *cells])
    clock = 'CPU time of all threads' if report.settings.get('clock') == 'cpu' else 'time'
    title = f'Forward and backward: {clock}, median; ratios with their quartiles'
    titles = dict(losses=title, step=f'Step: {clock}', epoch=f'Epoch with its loading: {clock}')
    return Grid(titles[report.command], head, rows, words=2)


def _loss_times(report: Report) -> Grid:
    variants = ('floor', 'textbook', 'MMRazor', 'ours', 'ours, compiled')
    ratios = [('textbook', 'ours'), ('textbook', 'ours, compiled'), ('MMRazor', 'ours')]
    ratios += [('MMRazor', 'ours, compiled')]
    return _times(report, variants, ratios)


def _compiling(report: Report) -> Grid:
    rows = []
    for one in report.rounds:
        if 'compile seconds' in one.extra:
            eager, compiled = one.time('ours'), one.time('ours, compiled')
            saved = eager.median - compiled.median
            pays = f'{one.extra["compile seconds"] / saved:,.0f}' if saved > 0 else 'never'
            seconds = f'{one.extra["compile seconds"]:.1f}'
            rows.append([one.group, one.case, seconds, pays])
    head = ['what', 'maps', 'to compile, s', 'steps until it pays']
    return Grid('Compiling', head, rows, words=2)


def _step_times(report: Report) -> Grid:
    variants = ('student', 'and bare teacher', 'MMRazor', 'ours', 'ours, fp32', 'ours, cached')
    ratios = [(name, 'student') for name in variants[1:]]
    return _times(report, variants, [*ratios, ('MMRazor', 'ours')])


def _epoch_times(report: Report) -> Grid:
    from benchmarks.epochs import ONLINE, READS, STUDENT, VARIANTS, VIEWS, WRITES

    ratios = [(name, STUDENT) for name in VARIANTS[1:]]
    return _times(report, (*VARIANTS, WRITES), [*ratios, (VIEWS, READS), (WRITES, ONLINE)])


def _footprints(report: Report) -> list[Grid]:
    """Bytes of losses and of steps, in tables of their own."""
    variants = ('textbook', 'MMRazor', 'ours', 'ours, compiled')
    rows = [
        [
            one.group,
            one.case,
            megabytes(one.allowed),
            *(megabytes(one.saved[name]) if name in one.saved else '–' for name in variants),
            *(megabytes(one.peak[name]) if name in one.peak else '–' for name in variants),
        ]
        for one in report.footprints
        if not one.parts
    ]
    head = ['what', 'maps', 'inputs and one map', *(f'kept: {name}' for name in variants)]
    head += [f'peak: {name}' for name in variants]
    found = [Grid('Losses, MB: kept for backward; peak beside the inputs', head, rows, words=2)]
    variants = ('student', 'and bare teacher', 'MMRazor', 'ours', 'ours, fp32', 'ours, cached')
    steps = [one for one in report.footprints if one.parts]
    rows = [
        [
            one.group,
            one.case,
            *(megabytes(one.peak[name]) if name in one.peak else '–' for name in variants),
            *map(megabytes, one.parts.values()),
        ]
        for one in steps
    ]
    if steps:
        head = ['what', 'batch', *variants, *steps[0].parts]
        found.append(Grid('Steps, MB: weights and the peak while running', head, rows, words=2))
    return found


def _exponents(report: Report) -> Grid:
    from benchmarks.scaling import AXES, exponent, sweeps

    rows = [
        [loss, *(f'{exponent(found[axis]):.2f}' if axis in found else '' for axis in AXES)]
        for loss, found in sweeps(report.points).items()
    ]
    return Grid('The time grows with this power of', ['what', *AXES], rows)


def machine_line(report: Report) -> str:
    """The machine, in one line."""
    parts = [f'{key} {value}' for key, value in report.machine.items()]
    clock = 'CPU time of all threads' if report.settings.get('clock') == 'cpu' else 'wall time'
    load = f'processes that wanted a core when it began {report.settings.get("load", "unknown")}'
    return '; '.join([*parts, *([] if report.command == 'memory' else [clock]), load])


def notes(report: Report) -> list[str]:
    """Why something was not measured, one line for each reason."""
    lines: dict[str, list[str]] = {}
    for one in (*report.rounds, *report.footprints):
        for variant, note in one.notes.items():
            lines.setdefault(f'{variant}: {note}', []).append(f'{one.group}, {one.case}')
    return [
        f'{note} ({"; ".join(where) if len(where) < 4 else f"{len(where)} cases"})'
        for note, where in lines.items()
    ]
