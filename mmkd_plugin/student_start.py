"""StudentStart: parts of a teacher that the student starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.taps import Tap, classes_around, find_module
from mmkd_plugin.teachers.base import Teacher
from mmkd_plugin.teachers.classes import order_between
from mmkd_plugin.words import did_you_mean, short, some

KEY = 'init_student_from_teacher'

FORM = (
    f"{KEY} must be a list of modules that student and teacher have, such as ['neck', "
    "'bbox_head'], or with several teachers a dict of such lists by the name of the teacher"
)


class StudentStart:
    """Weights of teachers that are copied into the student before training.

    They are read in the constructor, before a teacher folds its batch norms.

    Args:
        config (list[str] | dict[str, list[str]], optional): Names of modules that both models have;
            with several teachers by the name of the teacher. Defaults to None: nothing is copied.
        student (nn.Module): The student.
        teachers (Mapping[str, Teacher]): The teachers by name.
        classes (Sequence[str], optional): The classes of the student's data set. Defaults to None:
            not known.

    Raises:
        ValueError: If a teacher or a module does not exist, no weight of a module fits, or a module
            scores as many classes as the student's, but others or in another order.

    Examples:
        >>> student = nn.ModuleDict(dict(neck=nn.Conv2d(3, 8, 1)))
        >>> str(StudentStart(None, student, {}))
        ''
    """

    def __init__(
        self,
        config: Sequence[str] | Mapping[str, Sequence[str]] | None,
        student: nn.Module,
        teachers: Mapping[str, Teacher],
        classes: Sequence[str] | None = None,
    ) -> None:
        self._weights: dict[str, Tensor] = {}
        self._told: list[str] = []
        self._left: list[str] = []
        for name, parts in _by_teacher(config, teachers).items():
            model = teachers[name].predictor()
            if model is None:
                raise ValueError(
                    f"{KEY}: teacher '{name}' is no trained model with weights to copy; take one "
                    'with `config` and `checkpoint`, without `type`'
                )
            told = [self._take(part, student, model, teachers[name], classes) for part in parts]
            self._told.append(f"{', '.join(told)} from teacher '{name}'")

    def _take(
        self,
        part: str,
        student: nn.Module,
        model: nn.Module,
        teacher: Teacher,
        classes: Sequence[str] | None,
    ) -> str:
        """Takes the weights of a part that fit, and says how many there are."""
        whose = f"teacher '{teacher.name}'"
        for one, owner in ((student, 'the student'), (model, whose)):
            try:
                find_module(one, Tap(part), owner)
            except ValueError as error:
                raise ValueError(f'{KEY}: {error}') from None
        if classes and teacher.class_names and len(classes) == len(teacher.class_names):
            order = order_between(tuple(classes), teacher.class_names)
            if order is None or not order.identity:
                _refuse_other_classes(part, model, whose)
        (ours, given) = (
            {k: x for k, x in one.state_dict().items() if k.startswith(f'{part}.')}
            for one in (student, model)
        )
        fitting = {k: given[k] for k in ours if k in given and given[k].shape == ours[k].shape}
        if all(key.endswith('num_batches_tracked') for key in fitting):  # a number, whatever fits
            raise ValueError(
                f"{KEY}: no weight of '{part}' of {whose} fits the student: {_gap(ours, given)}; "
                f"leave '{part}' out, or take a teacher of the student's width"
            )
        self._weights |= fitting
        self._left += [key for key in ours if key not in fitting]
        return f"{len(fitting)} of {len(ours)} weights of '{part}'"

    def __str__(self) -> str:
        """Describes it for the plan; empty if nothing is copied."""
        left = f'; these keep their own: {some(self._left, 4)}' if self._left else ''
        return f'the student starts with {" and ".join(self._told)}{left}' if self._told else ''

    def __deepcopy__(self, memo: dict) -> StudentStart:
        return self

    @torch.no_grad()
    def copy_into(self, student: nn.Module) -> None:
        """Copies the weights into the student, and says so in the log.

        Args:
            student (nn.Module): The student.
        """
        if not self._weights:
            return
        state = student.state_dict()
        for key, value in self._weights.items():
            state[key].copy_(value)
        print_log(f'{KEY}: {self} (load_from and --resume come after this)', 'current')


def _by_teacher(config: Any, teachers: Mapping[str, Teacher]) -> dict[str, list[str]]:
    """Returns the names of parts for each teacher."""
    if config is None:
        return {}
    given = config
    if not isinstance(config, Mapping):
        if not isinstance(config, (list, tuple)):
            raise ValueError(f'{FORM}, got {short(config)}')
        if len(teachers) != 1:
            raise ValueError(
                f'{KEY}: there are {len(teachers)} teachers; say which one: '
                f'{KEY}=dict({next(iter(teachers))}={list(config)})'
            )
        given = {next(iter(teachers)): config}
    if not given:
        raise ValueError(f'{FORM}, got {short(config)}')
    for name, parts in given.items():
        if not fits(parts, list[str]) or not parts or not all(parts):
            raise ValueError(f'{FORM}, got {short(config)}')
        if name not in teachers:
            hint = did_you_mean(str(name), teachers, "'{}'")
            raise ValueError(
                f"{KEY}: no term learns from a teacher '{name}'{hint} (those that teach: "
                f'{", ".join(teachers)})'
            )
    return {name: list(parts) for name, parts in given.items()}


def _refuse_other_classes(part: str, model: nn.Module, whose: str) -> None:
    """Refuses a part that scores classes, which are not those of the student."""
    inside = find_module(model, Tap(part), whose).modules()
    if classes_around(model, Tap(part)) or any(hasattr(one, 'num_classes') for one in inside):
        raise ValueError(
            f"{KEY}: '{part}' of {whose} scores other classes than those of the student's data "
            'set, or the same in another order; name the modules inside it that come before the '
            'scores'
        )


def _gap(ours: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Says by one weight why none of them fits."""
    both = next((key for key in ours if key in given), None)
    if both is None:
        return 'it has no weight of the same name there'
    shapes = f'{tuple(ours[both].shape)} in the student and {tuple(given[both].shape)}'
    return f"'{both}' is {shapes} in the teacher"
