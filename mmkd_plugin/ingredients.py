"""Ingredients: student, terms, teachers and task of a Distiller, built from their configs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.losses.numerics.checks import weight
from mmkd_plugin.registry import MODELS
from mmkd_plugin.student import check_head_losses
from mmkd_plugin.taps.example import library_of
from mmkd_plugin.teachers.base import Teacher
from mmkd_plugin.teachers.configs import build_teacher, kind_of_teacher
from mmkd_plugin.teachers.model import check_std
from mmkd_plugin.terms.schedule import Schedule
from mmkd_plugin.terms.term import Term
from mmkd_plugin.words import short


def check_student(config: Any) -> None:
    """Refuses what is no config of a model.

    Args:
        config (Any): The ``student`` of a config.

    Raises:
        ValueError: If it is no dict, or has no ``type``.
    """
    if not isinstance(config, dict):
        expected = "dict(type='EncoderDecoder', ...)"
        raise ValueError(f'student: expected {expected}, got {short(config)}')
    if 'type' not in config:
        raise ValueError(
            'student has no `type`: it is the config of a model, such as the `model` of a '
            "config of mmseg or mmdet, dict(type='EncoderDecoder', ...)"
        )


def build_student(config: Any, data_preprocessor: Any) -> nn.Module:
    """The student: a model as it is, or one built from its config.

    Args:
        config (dict | nn.Module): The model or its config.
        data_preprocessor (dict, optional): Taken if its config has none.

    Raises:
        ValueError: If it is no model that trains by itself, or cannot be built.
    """
    student = config
    if not isinstance(config, nn.Module):
        check_student(config)
        config = dict(config)
        if data_preprocessor is not None:
            config.setdefault('data_preprocessor', data_preprocessor)
        with errors_named('student', config):
            student = MODELS.build(config)
    if not hasattr(student, 'data_preprocessor'):
        raise ValueError(
            f'student: {type(student).__name__} is not a model that trains by itself (an mmengine '
            'BaseModel), such as an EncoderDecoder or a RetinaNet'
        )
    lacks = isinstance(config, dict) and not config.get('data_preprocessor')
    if lacks and library_of(student) in ('mmseg', 'mmdet'):
        raise ValueError(
            'student has no `data_preprocessor`, neither in its own config nor at the top: add '
            "data_preprocessor=dict(type='SegDataPreProcessor', mean=..., std=..., ...)"
        )
    check_std(student, 'student')
    preprocessor = student.data_preprocessor
    size = getattr(preprocessor, 'size', None)
    if type(preprocessor).__name__ == 'SegDataPreProcessor':
        given = [one for one in ('size', 'size_divisor') if getattr(preprocessor, one) is not None]
        if len(given) != 1:
            raise ValueError(
                'student.data_preprocessor needs one of `size` and `size_divisor`, and has '
                f'{" and ".join(given) or "none"}'
            )
    if size is not None and not (fits(size, tuple[int, ...]) and len(size) == 2):
        raise ValueError(
            f'student.data_preprocessor.size must be a height and a width, got {short(size)}'
        )
    check_head_losses(student)
    return student


def build_terms(distill: Any, teachers: Sequence[str], compile: bool) -> dict[str, Term]:
    """The terms of a ``distill``, by their names."""
    check_distill(distill)
    return {n: Term.from_config(n, config, teachers, compile) for n, config in distill.items()}


def check_distill(distill: Any) -> None:
    """Refuses a ``distill`` that is no dict of named terms."""
    if isinstance(distill, (list, tuple)) and distill:
        raise ValueError(
            'distill is a dict of named terms, got a list: write distill=dict(cwd=dict(tap=...))'
        )
    if not isinstance(distill, dict) or not distill:
        raise ValueError(
            'distill has no term: add one, such as '
            "distill=dict(cwd=dict(tap='neck', loss=dict(type='mmkd_plugin.ChannelWiseLoss')))"
        )
    if 'loss' in distill and ('tap' in distill or 'student_tap' in distill):
        raise ValueError('distill is a dict of named terms: write distill=dict(cwd=dict(tap=...))')


def build_teachers(configs: Mapping[str, dict], used: set[str]) -> dict[str, Teacher]:
    """Builds the teachers that are needed; those that are trained along come last."""
    learns = {name: kind_of_teacher(config).learns for name, config in configs.items()}
    for name in configs:
        if name not in used and not learns[name]:
            print_log(
                f"Teacher '{name}' is not built: no term of `distill` has teacher='{name}'.",
                logger='current',
                level=logging.WARNING,
            )
    return {
        name: build_teacher(configs[name])
        for name in sorted(configs, key=learns.get)
        if name in used or learns[name]
    }


def task_of(config: Any) -> tuple[float, Schedule]:
    """Weight and schedule of the student's own losses."""
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise ValueError(f'task: expected dict(loss_weight=..., schedule=...), got {short(config)}')
    check_keys('task', config, ('loss_weight', 'schedule'))
    try:
        factor = weight('loss_weight', config.get('loss_weight', 1.0))
    except (TypeError, ValueError) as error:
        raise ValueError(f'task.{error}') from error
    return factor, Schedule.from_config('task.schedule', config.get('schedule'))
