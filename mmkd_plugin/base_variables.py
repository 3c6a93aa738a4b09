"""Variables of a base that a config sets again: what the base made of them stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmkd_plugin.config_text import File, files_of, is_used
from mmkd_plugin.run_config import KNOWN, places
from mmkd_plugin.words import some

#: The keys at which a variable is read, where they have another name.
READ_AS = dict(
    train_pipeline='pipeline',
    val_pipeline='pipeline',
    test_pipeline='pipeline',
    dataset_type='type',
)


def warn_of_base_variables(
    cfg: Config, options: Iterable[str] = (), parts: Iterable[str] = KNOWN
) -> None:
    """Names the variables that a run sets again without an effect, and where to write them.

    A config with ``_base_`` often has ``train_pipeline = [...]`` or ``data_root = '...'``, as its
    base has. But the data loaders of the base were made with the values that stand there.

    Args:
        cfg (Config): The config of a run.
        options (Iterable[str]): The keys that a command line has set in it. Defaults to ``()``.
        parts (Iterable[str]): The keys at the top that are read. Defaults to those of a training.
    """
    typed = set(options)
    for key, paths in _without_effect(cfg, typed, parts):
        who = '--cfg-options' if key in typed else 'The config'
        has = 'has' if len(paths) == 1 else 'have'
        first = paths[0]
        there = f': {first}=...' if key in typed else _written(first, key)
        print_log(
            f'{who} sets `{key}`, which nothing reads: {some(paths, 2)} {has} the value of '
            f'{"the config" if key in typed else "its _base_"}. Write it there{there}',
            logger='current',
            level=logging.WARNING,
        )


def _without_effect(
    cfg: Config, typed: Collection[str], parts: Iterable[str]
) -> Iterator[tuple[str, list[str]]]:
    """The variables, and the places that have the values from before."""
    files, values = files_of(cfg), cfg.to_dict()
    for key in (one for one in values if one not in KNOWN):
        setters = [number for number, file in enumerate(files) if file.sets(key)]
        if key not in typed:
            if not setters or files[setters[-1]].is_stock:
                continue
            if any(file.uses(key) for file in files[setters.pop() :]):
                continue
        if not setters:
            continue
        rest = {name: value for name, value in values.items() if name != key}
        before = _value_of(files[setters[-1]], key)
        if before is None or before == values[key] or is_used(values[key], rest):
            continue
        found = [
            path
            for path, name, value in places({name: rest[name] for name in parts if name in rest})
            if value == before and name in (key, READ_AS.get(key))
        ]
        if found:
            yield key, found


def _value_of(file: File, key: str) -> Any:
    """What a file and its bases set a key to; None if they can no longer be read."""
    try:
        return Config.fromfile(file.name, import_custom_modules=False).to_dict().get(key)
    except Exception:  # a config is a program
        return None


def _written(path: str, key: str) -> str:
    """The assignment that reaches a place, as a dict in dicts; nothing if it is in a list."""
    if '[' in path:
        return ''
    first, *rest = path.split('.')
    for name in reversed(rest):
        key = f'dict({name}={key})'
    return f': {first}={key}'
