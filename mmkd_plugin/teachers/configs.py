"""The ``teacher`` of a config: one or several, trained, trained along, or cached."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from mmkd_plugin.building import check_keys
from mmkd_plugin.cache.wiring import is_cached
from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.online import Teacher
from mmkd_plugin.teachers.self_teacher import SelfTeacher


def teacher_configs(teacher: dict | Sequence[dict]) -> dict[str, dict]:
    """The teachers of a config by their names.

    Raises:
        ValueError: If a key is unknown or missing, or names are not distinct.
    """
    several = not isinstance(teacher, dict)
    configs: dict[str, dict] = {}
    for config in teacher if several else [teacher]:
        own = is_self_teacher(config)
        if own:
            _check_self_teacher(config)
        elif is_cached(config):
            _check_cached_teacher(config)
        else:
            _check_teacher(config)
        name = config.get('name', None if several else 'self_teacher' if own else 'teacher')
        if name is None or name in configs:
            raise ValueError("with several teachers each needs a `name` of its own: name='large'")
        configs[name] = dict(config, name=name)
    if not configs:
        raise ValueError('teacher is an empty list')
    return configs


def is_self_teacher(config: dict) -> bool:
    """Whether the config of a teacher is that of a :class:`SelfTeacher`."""
    return 'type' in config and not is_cached(config)


def build_teacher(config: dict) -> Teacher | CachedTeacher:
    """Builds a teacher that is not trained along."""
    if not is_cached(config):
        return Teacher(**config)
    return CachedTeacher(**{key: value for key, value in config.items() if key != 'type'})


def _check_teacher(config: dict) -> None:
    check_keys('teacher', config, inspect.signature(Teacher).parameters)
    if 'config' not in config:
        raise ValueError("teacher has no `config`: a path, 'mmseg::...' or a model dict")
    if 'checkpoint' not in config:
        raise ValueError(
            'teacher has no `checkpoint`: a file or URL of its trained weights '
            '(checkpoint=None is a teacher with random weights)'
        )


def _check_cached_teacher(config: dict) -> None:
    check_keys('teacher', config, ('type', *inspect.signature(CachedTeacher).parameters))
    if 'path' not in config:
        raise ValueError('teacher has no `path`: the folder that tools/cache_teacher.py wrote')


def _check_self_teacher(config: dict) -> None:
    if config['type'] != 'mmkd_plugin.SelfTeacher':
        raise ValueError(
            f"teacher has type={config['type']!r}: write type='mmkd_plugin.SelfTeacher' for one "
            "that is trained along, type='mmkd_plugin.CachedTeacher' for stored maps of one, or "
            'leave `type` out for a trained one'
        )
    check_keys('teacher', config, ('type', *inspect.signature(SelfTeacher).parameters))
    for key in ('tap', 'neck'):
        if key not in config:
            raise ValueError(
                f'teacher has no `{key}`: a self-teacher has a tap in the student and a neck, such '
                "as tap='backbone', neck=dict(type='mmkd_plugin.BiFPNSelfTeacher')"
            )
