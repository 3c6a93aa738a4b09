"""``scaling``: how the cost of each loss grows with positions, batch, channels and classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import cases
from benchmarks.cases import Case, Shape
from benchmarks.measure import Spread, take_turns

#: What is varied, in the order of tables.
POSITIONS, BATCH, CHANNELS, CLASSES = 'positions', 'batch', 'channels', 'classes'
AXES = (POSITIONS, BATCH, CHANNELS, CLASSES)
#: The middle of all sweeps, and what it is multiplied by.
MAP, VECTOR = (4, 128, 64, 64), (64, 512)
FACTORS = (0.25, 0.5, 1, 2, 4)
QUICK_MAP, QUICK_VECTOR, QUICK_FACTORS = (4, 4, 8, 8), (8, 8), (0.5, 1, 2)


def pick(names: Sequence[str], quick: bool = False) -> list[Case]:
    """One case for each loss, or for each of its forms, at the middle of the sweeps."""
    picked: dict[str, Case] = {}
    for case in cases.pick(names, quick):
        picked.setdefault(case.name, case)
    return [replace(case, shapes=_base(case.shapes, quick)) for case in picked.values()]


def _base(shapes: Sequence[Shape], quick: bool) -> list[Shape]:
    if len(shapes[0]) == 2:
        return [QUICK_VECTOR if quick else VECTOR]
    (n, c, h, w), several = QUICK_MAP if quick else MAP, 2 if len(shapes) == 2 else 1
    return [(n, c * 2**number, h, w) for number in range(several)]


def axes_of(case: Case) -> list[str]:
    """What can be varied of a case."""
    axes = [POSITIONS, BATCH, CHANNELS] if len(case.shapes[0]) == 4 else [BATCH, CHANNELS]
    return [*axes, CLASSES] if case.others == 'labels' else axes


def varied(case: Case, axis: str, factor: float) -> tuple[Case, float]:
    """The case with so many times as much of something, and how much that is."""
    if axis == CLASSES:
        classes = max(2, round(case.classes * factor))
        return replace(case, classes=classes), classes
    shapes = []
    for count, channels, *sides in case.shapes:
        if axis == BATCH:
            count = round(count * factor)
        elif axis == CHANNELS:
            channels = round(channels * factor)
        else:
            sides = [round(side * math.sqrt(factor)) for side in sides]
        shapes.append((count, channels, *sides))
    first = shapes[0]
    value = {BATCH: first[0], CHANNELS: first[1], POSITIONS: math.prod(first[2:])}[axis]
    return replace(case, shapes=shapes), value


def measure(
    case: Case,
    device: torch.device,
    seconds: float,
    clock: Callable[[], float],
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Points of all sweeps of one loss, those of a sweep measured in turns."""
    points = []
    for axis in axes_of(case):
        calls, values = {}, {}
        for factor in QUICK_FACTORS if quick else FACTORS:
            one, values[factor] = varied(case, axis, factor)
            inputs = one.inputs(device)
            loss = one.ours(device)
            calls[factor] = lambda inputs=inputs, loss=loss: inputs.call(loss)
            calls[factor]()
        measured = take_turns(calls, device, seconds, clock)
        for factor, found in measured.items():
            points.append(
                dict(
                    loss=case.name,
                    axis=axis,
                    factor=factor,
                    value=values[factor],
                    seconds=Spread.of(found).median,
                )
            )
    return points


def sweeps(points: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The points by loss and by what was varied."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for point in points:
        found.setdefault(point['loss'], {}).setdefault(point['axis'], []).append(point)
    return found


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """The power of the value that the seconds grow with: the slope of a line through the logs."""
    values = np.log([point['value'] for point in points])
    return float(np.polyfit(values, np.log([point['seconds'] for point in points]), 1)[0])
