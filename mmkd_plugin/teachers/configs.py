"""The ``teacher`` of a config: one dict or several, each of one kind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from mmkd_plugin.building import check_keys
from mmkd_plugin.registry import MODELS
from mmkd_plugin.teachers.base import Teacher
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.words import did_you_mean


def teacher_configs(teacher: dict | Sequence[dict]) -> dict[str, dict]:
    """Checks the teachers of a config and returns their dicts by name.

    Args:
        teacher (dict | list[dict]): The ``teacher`` of a config.

    Returns:
        dict[str, dict]: The dict of each teacher, with ``name`` filled in.

    Raises:
        ValueError: If a kind of teacher does not exist, a key is unknown or missing, or two names
            are equal.
    """
    several = not isinstance(teacher, dict)
    configs: dict[str, dict] = {}
    for config in teacher if several else [teacher]:
        kind = kind_of_teacher(config)
        _check(config, kind)
        default = inspect.signature(kind).parameters['name'].default
        name = config.get('name', None if several else default)
        if name is None or name in configs:
            raise ValueError("with several teachers each needs a `name` of its own: name='large'")
        configs[name] = dict(config, name=name)
    if not configs:
        raise ValueError('teacher is an empty list')
    return configs


def kind_of_teacher(config: dict) -> type[Teacher]:
    """Returns the class of a teacher by its dict.

    Args:
        config (dict): The dict. Without ``type`` the class is :class:`OnlineTeacher`.

    Returns:
        type[Teacher]: The class.

    Raises:
        ValueError: If ``type`` is not a kind of teacher.
    """
    if 'type' not in config:
        return OnlineTeacher
    given: Any = config['type']
    kind = MODELS.get(given) if isinstance(given, str) else given
    if _is_teacher(kind):
        return kind
    names = [name for name, one in MODELS.module_dict.items() if _is_teacher(one)]
    short = str(given).rpartition('.')[2]
    hint = did_you_mean(short, names, "'mmkd_plugin.{}'", cutoff=0.5)
    known = ', '.join(f'mmkd_plugin.{name}' for name in names)
    raise ValueError(
        f'teacher has type={given!r}, which is not a kind of teacher{hint} (known: {known}; '
        'without `type` it is a trained model that runs beside the student)'
    )


def _is_teacher(kind: Any) -> bool:
    known = isinstance(kind, type) and issubclass(kind, Teacher)
    return known and not inspect.isabstract(kind)


def build_teacher(config: dict) -> Teacher:
    """Builds a teacher from a dict that :func:`teacher_configs` returned."""
    kind = kind_of_teacher(config)
    return kind(**{k: v for k, v in config.items() if k != 'type' and k not in kind.unused})


def _check(config: dict, kind: type[Teacher]) -> None:
    """Compares the keys of a config with the arguments of the constructor."""
    parameters = inspect.signature(kind).parameters
    known = ('type', *parameters) if 'type' in config else parameters
    check_keys('teacher', {k: v for k, v in config.items() if k not in kind.unused}, known)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in config:
            words = f': {kind.missing[key]}' if key in kind.missing else ''
            raise ValueError(f'teacher has no `{key}`{words}')
