"""The ``teacher`` of a config: one dict or several, each of one kind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from mmkd_plugin.annotations import check_arguments
from mmkd_plugin.building import check_keys, constructed, is_own
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.registry import MODELS, named
from mmkd_plugin.teachers.base import Teacher
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.words import did_you_mean, short


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
    if not isinstance(teacher, (dict, list, tuple)):
        as_config = f'config={teacher!r}' if isinstance(teacher, str) else "config='...'"
        raise ValueError(
            f'teacher: expected dict({as_config}, checkpoint=...) or a list of such, got '
            f'{short(teacher)}'
        )
    several = not isinstance(teacher, dict)
    configs: dict[str, dict] = {}
    for number, config in enumerate(teacher if several else [teacher]):
        here = f'teacher[{number}]' if several else 'teacher'
        if not isinstance(config, dict):
            raise ValueError(
                f"{here}: expected dict(config='...', checkpoint=...), got {short(config)}"
            )
        kind = kind_of_teacher(config)
        _check(config, kind, here)
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
    kind = given
    if isinstance(given, str):
        with errors_named('teacher'):
            kind = named(MODELS, given)
    if _is_teacher(kind):
        return kind
    last = str(given).rpartition('.')[2]
    hint = did_you_mean(last, _kinds(), "'mmkd_plugin.{}'", cutoff=0.5)
    known = ', '.join(f'mmkd_plugin.{name}' for name in _kinds())
    raise ValueError(
        f'teacher has type={given!r}, which is not a kind of teacher{hint} (known: {known}; '
        'without `type` it is a trained model that runs beside the student)'
    )


def _kinds() -> dict[str, type[Teacher]]:
    """All kinds of teachers that are registered, by name."""
    return {name: one for name, one in MODELS.module_dict.items() if _is_teacher(one)}


def _is_teacher(kind: Any) -> bool:
    known = isinstance(kind, type) and issubclass(kind, Teacher)
    return known and not inspect.isabstract(kind)


def build_teacher(config: dict) -> Teacher:
    """Builds a teacher from a dict that :func:`teacher_configs` returned."""
    kind = kind_of_teacher(config)
    arguments = {k: v for k, v in config.items() if k != 'type' and k not in kind.unused}
    return constructed(kind, arguments, f"teacher '{config['name']}'", config)


def _check(config: dict, kind: type[Teacher], here: str) -> None:
    """Compares the keys of a config with the arguments of the constructor."""
    parameters = inspect.signature(kind).parameters
    known = ('type', *parameters) if 'type' in config else parameters
    given = {k: v for k, v in config.items() if k not in kind.unused}
    unknown = {key: given[key] for key in {*given} - {*known, '_scope_'}}
    check_keys(here, given, known, _several(unknown) or _kind_that_takes({*unknown}))
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in config:
            words = f': {kind.missing[key]}' if key in kind.missing else ''
            raise ValueError(f'{here} has no `{key}`{words}')
    if is_own(kind):
        check_arguments(kind, {k: v for k, v in config.items() if k in parameters}, here)
    name = config.get('name')
    if kind.learns and name is not None and not _can_name_a_module(name):
        raise ValueError(
            f"{here}: '{name}' cannot name a teacher that is trained along; take another word of "
            "letters, digits and '_'"
        )


def _several(unknown: dict) -> str:
    """A clause about teachers that are given as a dict by name, empty if it does not look so."""
    if unknown and all(isinstance(one, dict) and 'config' in one for one in unknown.values()):
        teachers = ', '.join(f"dict(name='{name}', ...)" for name in sorted(unknown))
        return f'; several teachers are a list: teacher=[{teachers}]'
    return ''


def _kind_that_takes(keys: set[str]) -> str:
    """A clause that names the kinds of teachers which take some keys, empty if there are none."""
    kinds = [
        f"type='mmkd_plugin.{name}'"
        for name, kind in _kinds().items()
        if keys and keys <= {*inspect.signature(kind).parameters, *kind.unused}
    ]
    return f'; a teacher with {" or ".join(kinds)} takes it' if kinds else ''


def _can_name_a_module(name: Any) -> bool:
    return str(name).isidentifier() and not hasattr(nn.ModuleDict(), str(name))
