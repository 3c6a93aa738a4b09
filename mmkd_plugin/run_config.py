"""The config of a training run, checked before anything is built."""

from __future__ import annotations

import inspect
import keyword
import logging
import os
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmkd_plugin.building import check_keys
from mmkd_plugin.distiller import MISSING, Distiller, check_distill, task_of
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.terms.lines import check_line
from mmkd_plugin.terms.schedule import Schedule, check_come_on
from mmkd_plugin.words import did_you_mean, short, type_name

#: Keys at the top of a config that a runner reads; a config may have variables beside them.
KNOWN = (
    *list(inspect.signature(Runner.__init__).parameters)[1:],
    'custom_imports',
    'paraphraser',
    'runner_type',
    'tta_model',
    'tta_pipeline',
)

#: How close a key has to be to a known one to be taken for a misspelt one.
CLOSE = 0.85


def check_run(cfg: Config) -> None:
    """Refuses a config that cannot be trained, and warns about keys that nothing reads.

    Args:
        cfg (Config): The config of a run, with ``work_dir``.

    Raises:
        ValueError: If something is missing, of a wrong kind, or has no effect. The message begins
            with the key.
        OSError: If the work dir cannot be written.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'model: expected dict(type=..., ...), got {short(cfg.get("model"))}')
    if 'type' not in cfg.model:
        raise ValueError("model has no `type`, such as 'mmkd_plugin.Distiller'")
    for path, key in _keys(cfg.to_dict()):
        if keyword.iskeyword(key):
            raise ValueError(f"{path}: '{key}' is a word of Python; take another name")
    _check_work_dir(cfg.work_dir)
    _warn_of_unknown(cfg)
    lengths = _lengths(cfg.get('train_cfg'))
    if type_name(cfg.model.type) == 'Distiller':
        check_model(cfg.model, lengths)


def check_model(model: dict, lengths: dict[str, int] | None = None) -> None:
    """Checks the keys of a Distiller, its teachers and its terms, as far as no model is needed.

    Args:
        model (dict): The config of a Distiller.
        lengths (dict[str, int], optional): The length of the run, ``max_iters`` and
            ``max_epochs``. Defaults to None: not known.

    Raises:
        ValueError: If the Distiller would refuse it.
    """
    arguments = {key: value for key, value in model.items() if key not in ('type', '_scope_')}
    check_keys('model', arguments, list(inspect.signature(Distiller).parameters))
    for key, words in MISSING.items():
        if key not in arguments:
            raise ValueError(f'model has no `{key}`: {words}')
    teacher_configs(model['teacher'])
    check_distill(model['distill'])
    schedules = {}
    for name, line in model['distill'].items():
        here = f'distill.{name}'
        check_line(here, name, line)
        schedules[here] = Schedule.from_config(f'{here}.schedule', line.get('schedule'))
    _, schedules['task'] = task_of(model.get('task'))
    check_come_on(schedules, lengths or {})


def _lengths(train_cfg: Any) -> dict[str, int]:
    """The length of a run in iterations and epochs, as far as its config says it."""
    lengths = {}
    if not isinstance(train_cfg, dict):
        return lengths
    for key in ('max_iters', 'max_epochs'):
        value = train_cfg.get(key)
        if value is None:
            continue
        whole = isinstance(value, Real) and not isinstance(value, bool) and value % 1 == 0
        if not whole or value < 1:
            raise ValueError(
                f'train_cfg.{key} must be a whole number from 1 on, got {short(value)}'
            )
        lengths[key] = int(value)
    if lengths.keys() == {'max_iters'}:
        lengths['max_epochs'] = 1  # a run by iterations
    return lengths


def _check_work_dir(work_dir: Any) -> None:
    if not isinstance(work_dir, str) or not work_dir.strip():
        raise ValueError(f'work_dir must be the name of a folder, got {short(work_dir)}')
    there = Path(work_dir).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f'the work dir {work_dir} cannot be made: {there} is a file')
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f'the work dir {work_dir} cannot be written: {there} is read-only')


def _keys(value: Any, path: str = '') -> Iterator[tuple[str, str]]:
    """All keys of nested dicts, with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f'{path}.{key}' if path else str(key)
            if isinstance(key, str):
                yield here, key
            yield from _keys(inner, here)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _keys(inner, f'{path}[{number}]')


def _warn_of_unknown(cfg: Config) -> None:
    """Names the keys at the top that are close to a known one and that nothing reads."""
    for key, value in cfg.items():
        hint = '' if key in KNOWN else did_you_mean(key, KNOWN, cutoff=CLOSE)
        if hint and not _is_used(value, {k: v for k, v in cfg.items() if k != key}):
            print_log(
                f'The config has a key `{key}` that nothing reads{hint}',
                logger='current',
                level=logging.WARNING,
            )


def _is_used(value: Any, rest: Any) -> bool:
    """Whether a variable of a config, a dict or a list, occurs in another part of it."""
    if not isinstance(value, (dict, list, tuple)):
        return False
    if isinstance(rest, dict):
        return any(one == value or _is_used(value, one) for one in rest.values())
    if isinstance(rest, (list, tuple)):
        return any(one == value or _is_used(value, one) for one in rest)
    return False
