"""The targets, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.epochs import VIEWS, WRITES
from benchmarks.losses import COMPETITORS, EAGER, FLOOR, OURS, TEXTBOOK
from benchmarks.measure import Footprint, Rounds
from benchmarks.report import Report, megabytes, spread, times
from benchmarks.steps import CACHED, FP32, ONLINE, STUDENT
from benchmarks.steps import RAZOR as RAZOR_STEP

#: How many times as fast as MMRazor's form, or the textbook's where it has none, on two CPU cores.
FASTER = {
    'ChannelWiseLoss': 5,
    'PixelWiseLoss': 4,
    'AttentionLoss': 3,
    'PairWiseLoss all positions': 10,
    'IntraClassVariationLoss 19 classes': 8,
    'NeuronSelectivityLoss': 5,
    'LocalSimilarityLoss distance': 3,
    'LocalSimilarityLoss cosine': 3,
}
#: Losses whose products of matrices take longer than reading the maps: the floor is not theirs.
COMPUTE_BOUND = ('PairWiseLoss all positions', 'NeuronSelectivityLoss', 'FSPLoss', 'RKD')
#: How many times as long as the floor, on a GPU.
OVER_FLOOR = 2
#: How many times as fast as MMRazor's step: on a GPU, on a CPU with bf16 arithmetic, without.
STEP = {'cuda': 2.0, 'bf16': 1.4, 'plain': 1.15}
STEP_DETECTION = 1.15
#: How many times as long as the plain student's step, with cached targets.
CACHED_STEP = 1.10
#: The same of an epoch with its data loading, with cached views.
CACHED_EPOCH = 1.03


class Verdict(NamedTuple):
    """One target: what it asks for, what was measured, and ``PASS`` or how far it is missed."""

    target: str
    measured: str
    verdict: str


def at_least(value: float, wanted: float) -> str:
    """``PASS``, or the shortfall, ``'3.10× of 5×'``."""
    return 'PASS' if value >= wanted else f'{times(value)} of {wanted:g}×'


def at_most(value: float, wanted: float) -> str:
    """``PASS``, or the excess."""
    return 'PASS' if value <= wanted else f'{times(value)} of at most {wanted:g}×'


def verdicts(report: Report) -> list[Verdict]:
    """Every target that a report can tell something about."""
    found = []
    if report.command == 'losses':
        found = [*_faster(report.rounds), *_none_slower(report.rounds)]
        found += [*_over_floor(report), *_compiles(report.rounds)]
    elif report.command == 'step':
        found = _steps(report)
    elif report.command == 'epoch':
        found = _epochs(report.rounds)
    elif report.command == 'memory':
        found = [*_saved(report.footprints), *_pair_wise(report.footprints)]
        found += _step_peak(report.footprints)
    return found


# Losses -------------------------------------------------------------------------------------------


def _faster(rounds: Sequence[Rounds]) -> list[Verdict]:
    found = []
    for one in rounds:
        if one.group not in FASTER:
            continue
        wanted = FASTER[one.group]
        slow = next((v for v in COMPETITORS if v in one.seconds or v in one.notes), TEXTBOOK)
        fast = one.fastest(OURS)
        target = f'{one.group}, {one.case}: {wanted:g}× as fast as {slow}'
        ratio = one.ratio(slow, fast) if fast else None
        if ratio is None:
            found.append(Verdict(target, one.notes.get(slow, 'not run'), 'not measured'))
        else:
            measured = f'{spread(ratio)} ({fast})'
            found.append(Verdict(target, measured, at_least(ratio.median, wanted)))
    return found


def _none_slower(rounds: Sequence[Rounds]) -> list[Verdict]:
    """Slower is where even the upper quartile of the ratios is below 1."""
    found = []
    for ours in OURS:
        ratios = {f'{r.group}, {r.case}': r.ratio(TEXTBOOK, ours) for r in rounds}
        ratios = {name: ratio for name, ratio in ratios.items() if ratio}
        if not ratios:
            continue
        slower = {name: ratio for name, ratio in ratios.items() if ratio.high < 1}
        worst = sorted(slower, key=lambda name: slower[name].median)[:5]
        listed = '; '.join(f'{name} {times(slower[name].median)}' for name in worst)
        listed += '; ...' if len(slower) > len(worst) else ''
        name, least = min(ratios.items(), key=lambda item: item[1].median)
        found.append(
            Verdict(
                f'{ours}: nowhere slower than the textbook',
                f'least in {name}: {spread(least)}',
                f'slower in {len(slower)} of {len(ratios)}: {listed}' if slower else 'PASS',
            )
        )
    return found


def _over_floor(report: Report) -> list[Verdict]:
    found = []
    target = f'within {OVER_FLOOR}× of the floor on a GPU'
    if report.device != 'cuda':
        return [Verdict(target, 'this is a CPU', 'not measured')]
    for one in report.rounds:
        fast = one.fastest(OURS)
        ratio = one.ratio(fast, FLOOR) if fast else None
        if ratio is not None and not one.group.startswith(COMPUTE_BOUND):
            verdict = at_most(ratio.median, OVER_FLOOR)
            name = f'{one.group}, {one.case}: {target}'
            found.append(Verdict(name, f'{spread(ratio)} ({fast})', verdict))
    return found


def _compiles(rounds: Sequence[Rounds]) -> list[Verdict]:
    compiled = OURS[1]
    failures = [one for one in rounds if one.notes.get(compiled, '').startswith('failed')]
    tried = [*(one for one in rounds if compiled in one.seconds), *failures]
    failed = [f'{one.group}, {one.case}' for one in failures]
    if not tried:
        return []
    verdict = f'not in {len(failed)}: {"; ".join(failed)}' if failed else 'PASS'
    measured = f'{len(tried) - len(failed)} of {len(tried)} cases'
    return [Verdict('each loss compiles, in one graph', measured, verdict)]


# Steps --------------------------------------------------------------------------------------------


def _steps(report: Report) -> list[Verdict]:
    found = []
    bf16 = report.machine.get('bf16 arithmetic') != 'none'
    for one in report.rounds:
        wanted = STEP['cuda' if report.device == 'cuda' else 'bf16' if bf16 else 'plain']
        detection = 'Retina' in one.group
        wanted = STEP_DETECTION if detection else wanted
        targets = [
            (RAZOR_STEP, ONLINE, f"online: {wanted:g}× as fast as MMRazor's", at_least, wanted),
            (CACHED, STUDENT, "cached: at most 1.10× the student's", at_most, CACHED_STEP),
        ]
        if report.device == 'cpu' and bf16 and not detection:
            plain = STEP['plain']
            target = f"online, teacher in fp32: {plain:g}× as fast as MMRazor's"
            targets.insert(1, (RAZOR_STEP, FP32, target, at_least, plain))
        for slow, fast, target, judge, limit in targets:
            ratio, name = one.ratio(slow, fast), f'{one.group}, {target}'
            if ratio is None:
                note = one.notes.get(slow) or one.notes.get(fast, 'not run')
                found.append(Verdict(name, note, 'not measured'))
            else:
                found.append(Verdict(name, spread(ratio), judge(ratio.median, limit)))
    return found


def _epochs(rounds: Sequence[Rounds]) -> list[Verdict]:
    found = []
    for one in rounds:
        ratio = one.ratio(VIEWS, STUDENT)
        name = (
            f"{one.group}, cached views with their loading: at most {CACHED_EPOCH}× the student's"
        )
        if ratio is not None:
            found.append(Verdict(name, spread(ratio), at_most(ratio.median, CACHED_EPOCH)))
        ratio = one.ratio(WRITES, ONLINE)
        name = f'{one.group}, a view written: cheaper than an epoch of the online teacher'
        if ratio is not None:
            found.append(Verdict(name, spread(ratio), at_most(ratio.median, 1)))
    return found


# Memory -------------------------------------------------------------------------------------------


def _saved(footprints: Sequence[Footprint]) -> list[Verdict]:
    there = [one for one in footprints if EAGER in one.saved]
    if not there:
        return []
    over = [one for one in there if one.saved[EAGER] > one.allowed]
    worst = max(there, key=lambda one: one.saved[EAGER] / one.allowed)
    measured = (
        f'most in {worst.group}, {worst.case}: {megabytes(worst.saved[EAGER])} of '
        f'{megabytes(worst.allowed)} MB'
    )
    names = '; '.join(
        f'{one.group}, {one.case} {times(one.saved[EAGER] / one.allowed)} of it' for one in over
    )
    return [
        Verdict(
            'each loss saves for backward at most its inputs and one map',
            measured,
            f'more in {len(over)} of {len(there)}: {names}' if over else 'PASS',
        )
    ]


def _pair_wise(footprints: Sequence[Footprint]) -> list[Verdict]:
    found, wanted = [], FASTER['PairWiseLoss all positions']
    for one in footprints:
        if one.group == 'PairWiseLoss all positions':
            target = f'{one.group}, {one.case}: 1/{wanted} of the memory of the textbook'
            if TEXTBOOK in one.peak and EAGER in one.peak:
                ratio = one.peak[TEXTBOOK] / one.peak[EAGER]
                measured = f'{megabytes(one.peak[TEXTBOOK])} : {megabytes(one.peak[EAGER])} MB'
                found.append(Verdict(target, measured, at_least(ratio, wanted)))
            else:
                note = one.notes.get(TEXTBOOK, 'not run')
                found.append(Verdict(target, note, 'not measured'))
    return found


def _step_peak(footprints: Sequence[Footprint]) -> list[Verdict]:
    found = []
    for one in footprints:
        if STUDENT in one.peak and ONLINE in one.peak:
            beyond = one.peak[ONLINE] - one.peak[STUDENT]
            found.append(
                Verdict(
                    f'{one.group}, {one.case}: a step adds at most teacher, taps and one layer',
                    f'{megabytes(beyond)} of {megabytes(one.allowed)} MB',
                    at_most(beyond / one.allowed, 1),
                )
            )
    return found
