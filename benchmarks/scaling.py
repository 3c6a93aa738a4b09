"""``scaling``: how the cost of each loss grows with positions, batch, channels, classes, boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.measure import Spread, take_turns

#: What is varied, in the order of tables.
POSITIONS, BATCH, CHANNELS, CLASSES = 'positions', 'batch', 'channels', 'classes'
BOXES = 'boxes'
AXES = (POSITIONS, BATCH, CHANNELS, CLASSES, BOXES)
#: The middle of all sweeps, and what it is multiplied by.
MAP, VECTOR = (4, 128, 64, 64), (64, 512)
FACTORS = (0.25, 0.5, 1, 2, 4)
QUICK_MAP, QUICK_VECTOR, QUICK_FACTORS = (4, 4, 8, 8), (8, 8), (0.5, 1, 2)
#: The same for the results of heads: those of one level of a detector with distributions of boxes,
#: and those of a decoder with queries.
HEADS = {
    'head': [(4, 80, 64, 64), (4, 68, 64, 64)],
    'queries': [(1, 4, 300, 80), (1, 4, 300, 4)],
    'masks': [(1, 4, 100, 81), (1, 4, 100, 64, 64)],
}
QUICK_HEADS = {
    'head': [(2, 8, 8, 8), (2, 16, 8, 8)],
    'queries': [(1, 2, 8, 8), (1, 2, 8, 4)],
    'masks': [(1, 2, 8, 8), (1, 2, 8, 8, 8)],
}
#: Which dimensions of the shapes an axis is.
DIMENSIONS = {POSITIONS: (2, 3), BATCH: (0,), CHANNELS: (1,), CLASSES: (1,)}
OF_QUERIES = {POSITIONS: (2,), BATCH: (1,), CLASSES: (3,)}


def pick(names: Sequence[str], quick: bool = False) -> list[Case]:
    """One case for each loss, or for each of its variants, at the middle of the sweeps."""
    picked: dict[str, Case] = {}
    for case in cases.pick(names, quick):
        picked.setdefault(case.name, case)
    return [_in_the_middle(case, quick) for case in picked.values()]


def _in_the_middle(case: Case, quick: bool) -> Case:
    """The case at another size; without MMRazor's form, which is built for the size it had."""
    heads, case = QUICK_HEADS if quick else HEADS, replace(case, razor=None)
    if case.where in heads:
        return replace(case, shapes=heads[case.where])
    if len(case.shapes[0]) == 2:
        shapes = [QUICK_VECTOR if quick else VECTOR]
    else:
        n, c, h, w = QUICK_MAP if quick else case.middle or MAP
        shapes = [(n, c * 2**number, h, w) for number in range(2 if len(case.shapes) == 2 else 1)]
    classes = shapes[0][1] if _of_logits(case) else case.classes
    return replace(case, shapes=shapes, classes=classes)


def _of_logits(case: Case) -> bool:
    """Whether the labels are those of the channels."""
    return case.others == 'labels' and case.classes == case.shapes[0][1]


def axes_of(case: Case) -> list[str]:
    """What can be varied of a case."""
    if case.where in HEADS:
        axes = [POSITIONS, BATCH, CLASSES]
    else:
        axes = [POSITIONS, BATCH, CHANNELS] if len(case.shapes[0]) == 4 else [BATCH, CHANNELS]
        axes += [CLASSES] * (case.others == 'labels' and not _of_logits(case))
    return [*axes, *[BOXES] * ('boxes' in (case.others or ''))]


def varied(case: Case, axis: str, factor: float) -> tuple[Case, float]:
    """The case with so many times as much of something, and how much that is."""
    if axis == BOXES:
        boxes = round(case.boxes * factor)
        return replace(case, boxes=boxes), boxes
    if axis == CLASSES and case.where not in HEADS:
        classes = max(2, round(case.classes * factor))
        options = {**case.options, **({'classes': classes} if 'classes' in case.options else {})}
        return replace(case, classes=classes, options=options), classes
    dims = (OF_QUERIES if case.where in ('queries', 'masks') else DIMENSIONS)[axis]
    shapes = [list(shape) for shape in case.shapes]
    for shape in shapes[:1] if axis == CLASSES else shapes:  # not that of the boxes
        for dim in dims:
            shape[dim] = round(shape[dim] * factor ** (1 / len(dims)))
    value = math.prod(shapes[0][dim] for dim in dims)
    classes = shapes[0][1] if _of_logits(case) else case.classes
    return replace(case, shapes=[tuple(shape) for shape in shapes], classes=classes), value


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
