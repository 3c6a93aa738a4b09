"""Arguments of a class of another library that may be why it failed, as a part of a message."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from mmengine.registry import Registry

from mmkd_plugin.annotations import expected, fits, hints_of
from mmkd_plugin.registry import MODELS, named
from mmkd_plugin.words import short, some

#: What is no argument of the class.
NOT_GIVEN = ('type', '_scope_')

_NOTHING = inspect.Parameter.empty


def told_of_arguments(kind: Any, arguments: Mapping[str, Any], error: str) -> str:
    """What a message about a failed class says of its arguments.

    Args:
        kind (Any): The class.
        arguments (Mapping[str, Any]): Its dict in the config.
        error (str): What it failed with.

    Returns:
        str: A clause that begins with ``'; '``: the arguments that look wrong, or all of them.
        Empty if the error names one itself.

    Examples:
        >>> told_of_arguments(dict, dict(type='A', width=-3, depth=18), 'RuntimeError')
        '; `width` is -3, expected a number from 0 on'
        >>> told_of_arguments(dict, dict(type='A', width=3, depth=18), 'RuntimeError')
        '; look at its arguments: width=3, depth=18, expected those of another kind or size'
    """
    odd = [
        f'`{key}` is {short(value)}, expected {wanted}'
        for key, value, wanted in _odd(kind, arguments)
    ]
    if odd:
        return f'; {some(odd, 3, "; ")}'
    given = {key: value for key, value in arguments.items() if key not in NOT_GIVEN}
    if not given or any(re.search(rf'\b{re.escape(str(key))}\b', error) for key in given):
        return ''
    each = some((f'{key}={short(value, 60)}' for key, value in given.items()), 12)
    return f'; look at its arguments: {each}, expected those of another kind or size'


def told_of_parts(config: Any, scope: str | None = None, here: str = '') -> str:
    """What looks wrong in a model that was built and cannot run, part by part.

    Each class took its arguments, so that only those are named that hardly any class means: many
    take a list in the place of a number, and some a number below 0.

    Args:
        config (Any): The dict of the model.
        scope (str, optional): The library in which names of classes are looked up. Defaults to
            None: the one of now.
        here (str): Where it lies, for messages. Defaults to ``''``.

    Returns:
        str: A clause that begins with ``'; '``, empty if nothing looks wrong.
    """
    with MODELS.switch_scope_and_registry(scope) as registry:
        odd = [
            f'`{path}.{key}` is {short(value)}, expected {wanted}'
            for path, part in _parts_of(config, here)
            if inspect.isclass(kind := _class_of(part, registry))
            for key, value, wanted in _odd(kind, part, taken=True)
        ]
    return f'; {some(odd, 3, "; ")}' if odd else ''


def _parts_of(config: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(config, Mapping):
        if 'type' in config:
            yield path, config
        for key, value in config.items():
            yield from _parts_of(value, f'{path}.{key}'.lstrip('.'))
    elif isinstance(config, (list, tuple)):
        for number, value in enumerate(config):
            yield from _parts_of(value, f'{path}[{number}]')


def _class_of(part: Mapping[str, Any], registry: Registry) -> Any:
    kind = part['type']
    return named(registry, kind) if isinstance(kind, str) else kind


def _odd(
    kind: Any, arguments: Mapping[str, Any], taken: bool = False
) -> Iterator[tuple[str, Any, str]]:
    """The arguments that look wrong: the key, the value, and what is expected.

    Args:
        kind (Any): The class.
        arguments (Mapping[str, Any]): Its dict in the config.
        taken (bool): Whether it took them. Defaults to False.
    """
    hints, defaults = _signature(kind)
    for key, value in arguments.items():
        default = defaults.get(key, _NOTHING)
        if key in NOT_GIVEN or _is_same(value, default):
            continue
        several = key in hints and isinstance(value, (list, tuple))  # its hint says whether it may
        wanted = _unlike(value, _NOTHING if several else default)
        if key in hints and not fits(value, hints[key]):
            part = fits({}, hints[key])  # where None is none, and a list several
            if not (taken and part and isinstance(value, (list, tuple, type(None)))):
                yield key, value, expected(hints[key])
        elif wanted and (not taken or _is_strange(value, default, key in hints)):
            yield key, value, wanted
        elif isinstance(value, Mapping) and 'type' in value and not _is_kind(value['type']):
            yield f'{key}.type', value['type'], 'the name of a class'


def _is_same(value: Any, default: Any) -> bool:
    """Whether an argument has its default; configs have lists where code has tuples."""
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return value is default or (type(value) is type(default) and value == default)


def _signature(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hints and defaults of the arguments of a class and its bases."""
    hints, defaults = {}, {}
    for base in reversed(getattr(kind, '__mro__', ())[:-1]):
        hints |= hints_of(base)
        try:
            known = inspect.signature(base).parameters.values()
        except (TypeError, ValueError):  # some that are written in C say nothing
            continue
        defaults |= {one.name: one.default for one in known}
    return hints, defaults


def _unlike(value: Any, default: Any) -> str | None:
    """What is expected in the place of a value, None if it may be right."""
    if value is None:
        return None if default in (None, _NOTHING) else 'a value'
    if isinstance(default, bool):
        return None if isinstance(value, bool) else 'True or False'
    if isinstance(value, str) and isinstance(default, Real):
        return f'a number, such as {short(default)}'
    if isinstance(value, str):
        return None if value.strip() and value.isprintable() else 'a text that is not empty'
    if isinstance(value, Real):
        from_0 = not isinstance(default, Real) or default >= 0
        if not math.isfinite(value) or abs(value) > 1e12:
            return 'a finite number'
        return 'a number from 0 on' if value < 0 and from_0 else None
    if isinstance(value, (list, tuple)):
        if isinstance(default, (Real, str, Mapping)):
            return f'one value, such as {short(default)}'
        odd = next((wanted for one in value if (wanted := _unlike(one, 0))), None)
        kinds = {type(one) if not isinstance(one, Real) else Real for one in value}
        return odd or ('values of one kind' if len(kinds) > 1 else None)
    return None


def _is_strange(value: Any, default: Any, hinted: bool) -> bool:
    """Whether a class that took a value in the place of a default hardly means it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        wild = not math.isfinite(value) or abs(value) > 1e12
        return wild or (isinstance(default, bool) and not hinted)
    return isinstance(value, str) and not hinted


def _is_kind(value: Any) -> bool:
    return callable(value) or (isinstance(value, str) and bool(value.strip()))
