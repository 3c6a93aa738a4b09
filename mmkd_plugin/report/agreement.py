"""Agreement: how often the student of a run predicts what its teachers do, on a few images."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from mmkd_plugin.distiller import Distiller
from mmkd_plugin.explanations import evaluating
from mmkd_plugin.metrics.teacher_agreement import counts_of, kind_of, shares_of
from mmkd_plugin.teachers.classes import order_between
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.visualization.scene import evenly

#: Most images that are predicted, and seconds after which no other one is begun.
IMAGES, SECONDS = 32, 3.0

#: What the shares are called on a page.
SHARES = dict(
    pixel='of the pixels have the same class',
    found="of the teacher's boxes are the student's too",
    confirmed="of the student's boxes are the teacher's too",
)


def agreement_of(
    model: Distiller, dataset: Any, teachers: Mapping[str, Any], seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Compares the predictions of a student with those of its teachers.

    The images are spread evenly over the data set, at most 32, as many as the time allows.

    Args:
        model (Distiller): The student and its teachers. They stay as they are.
        dataset (Any): The validation set.
        teachers (Mapping): ``teacher`` of the config. A teacher that has no model, because its maps
            are stored, is loaded if its ``config`` and ``checkpoint`` are given.
        seconds (float): After them no other image is begun. Defaults to 3.

    Returns:
        list[dict]: For each teacher its name as ``teacher``, ``images``, the number of them, and
        ``shares``, percent by name, None of nothing; or ``problem``, the reason why there are none.
    """
    start = time.perf_counter()
    classes = dataset.metainfo['classes']
    device = next(model.student.parameters()).device
    found, answers = [], {}
    for name, config in teacher_configs(teachers).items():
        predictor, names = _predictor(model, name, config, device)
        answer, problem = None, 'it has no model that predicts'
        if getattr(predictor, 'predicts', predictor is not None):
            answer, problem = _renumbered(classes, names)
        if answer is None:
            found.append(dict(teacher=name, problem=problem))
        else:
            answers[name] = predictor, answer
    counts: dict[str, list[Tensor]] = {name: [] for name in answers}
    kind = ''
    for number in _spread(len(dataset)) if answers else ():
        data = dataset[number]
        (ours,) = _predict(model.student, data)
        kind = kind_of(ours)
        for name, (predictor, numbers) in answers.items():
            (theirs,) = _predict(predictor, data)
            theirs = _in_our_numbers(theirs[kind], numbers)
            counts[name].append(counts_of(ours, theirs, len(classes) + 1).cpu())
        if time.perf_counter() - start > seconds:
            break
    for name, those in counts.items():
        shares = {k: None if isnan(v) else v for k, v in shares_of(those, kind).items()}
        found.append(dict(teacher=name, images=len(those), shares=shares))
    return found


def _predictor(
    model: Distiller, name: str, config: Mapping[str, Any], device: torch.device
) -> tuple[nn.Module | None, Sequence[str] | None]:
    """The model of a teacher, and the names of its classes if they are known."""
    teacher = model.teachers[name]
    predictor = teacher.predictor()
    if predictor is None and Path(str(config.get('checkpoint'))).is_file() and 'config' in config:
        trained = OnlineTeacher(config['config'], config['checkpoint'])
        predictor = trained.model.to(device)
    return predictor, teacher.class_names


def _renumbered(ours: Sequence[str], theirs: Sequence[str] | None) -> tuple[list[int] | None, str]:
    """The student's number of each class of a teacher, the number of classes for a foreign one.

    Returns:
        tuple[list[int] | None, str]: An empty list if the numbers are the same. None, and the
        reason, if the teacher lacks a class.
    """
    if theirs is None:
        return [], ''
    order = order_between(tuple(ours), tuple(theirs))
    if order is None:
        return None, 'it was trained on other classes than the data set has'
    if order.identity:
        return [], ''
    numbers = [len(ours)] * order.classes
    for number, place in enumerate(order.numbers):
        numbers[place] = number
    return numbers, ''


def _in_our_numbers(found: dict, numbers: Sequence[int]) -> dict:
    """A label map or boxes with the student's numbers of the classes."""
    if not numbers:
        return found
    key = 'data' if 'data' in found else 'labels'
    table = torch.tensor(numbers, device=found[key].device)
    return found | {key: table[found[key].long()]}


def _spread(length: int) -> list[int]:
    """Numbers of images in an order in which any beginning is spread over the data set."""
    return random.Random(0).sample(found := evenly(IMAGES, length), len(found))


@torch.no_grad()
def _predict(model: nn.Module, data: dict) -> list[dict]:
    with evaluating(model):
        return [one.to_dict() for one in model.test_step(pseudo_collate([data]))]
