"""Errors of the libraries that build a model, as one line that names the key in the config."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

from mmkd_plugin.libraries import import_problem, installed, not_installed
from mmkd_plugin.old_keys import SUCCESSORS
from mmkd_plugin.registry import MODELS, is_no_name
from mmkd_plugin.suspects import told_of_arguments
from mmkd_plugin.words import as_written, did_you_mean, first_line, short, some


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a line of this package, or is one of its kinds."""
    if type(error).__module__.startswith('mmkd_plugin.'):  # torch raises those of workers anew
        return True
    frames = frames_of(error)
    return bool(frames) and frames[-1].f_globals.get('__name__', '').startswith('mmkd_plugin')


def is_of_a_part(error: BaseException) -> bool:
    """Whether a library raised an error while it built a part of a config."""
    return not is_ours(error) and bool(_building(error))


@contextmanager
def errors_named(here: str, config: Any = None) -> Iterator[None]:
    """Turns the errors of other libraries into a ValueError that begins with a place in the config.

    Args:
        here (str): What messages call the place.
        config (dict, optional): What is built; the message then names the part of it that could
            not be. Defaults to None.

    Raises:
        ValueError: In place of an error of another library.
        Exception: A ``ValueError`` or an ``OSError`` of this package, as it is.

    Examples:
        >>> with errors_named('student'):
        ...     dict(depth=18)['width']
        Traceback (most recent call last):
        ValueError: student: KeyError: 'width'
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) and is_ours(error):
            raise
        raise ValueError(explained(error, here, config)) from error


def explained(error: Exception, here: str, config: Any) -> str:
    """What was wrong with which part of a config.

    Args:
        error (Exception): An error of another library.
        here (str): What messages call the place of the config.
        config (Any): What was built, or None.

    Returns:
        str: One line that begins with the place.
    """
    if problem := import_problem(error):
        return f'{here}: {problem}'
    building = _building(error)
    part = building[-1].get('cfg') if building else None
    if building and not isinstance(part, dict):
        return _not_a_part(part, building, here, config)
    if not building:
        return f'{here}: {first_line(error)}'
    path = _path_of(part, config)
    place = f'{here}{path}' if path is not None else f'{here}: {as_written(part.get("type"))}'
    kind = part.get('type')
    blank = isinstance(kind, str) and not (kind.strip() and kind.isprintable())
    if blank or ('type' in part and not isinstance(kind, str) and not callable(kind)):
        return f'{place}.type must be the name of a class, got {short(kind)}'
    unknown = isinstance(error, KeyError) and 'is not in the' in str(error)
    if unknown or (is_no_name(error) and str(error).endswith(f' {kind}')):
        registry = building[-1].get('registry')
        if path is not None and (problem := _scope_problem(path, config, registry)):
            return f'{here}{problem}'
        gone = SUCCESSORS.get(kind.rpartition('.')[2]) if isinstance(kind, str) else None
        similar = (f'; {gone}' if gone else '') or _similar(kind, registry)
        similar = similar or '; expected the name of a class'
        return f'{here if path is None else f"{place}.type"}: there is no {short(kind)}{similar}'
    if 'type' not in part:
        return f"{place} has no `type`: expected dict(type='...')"
    made = building[-1].get('obj_cls')
    name = getattr(made, '__name__', short(kind))
    _, _, unknown = str(error).partition('unexpected keyword argument ')
    if isinstance(error, TypeError) and unknown and inspect.isclass(made):
        unknown = unknown.strip('\'". ')
        known = _arguments(made)
        close = _namesake(made, part, unknown, building[-1].get('registry'))
        close = close or did_you_mean(unknown, ['_scope_', *known])
        if not close and known:
            close = f' (known: {some(known, 12)})'
        return f'{place}: {name} has no argument `{unknown}`{close}'
    said = first_line(error)
    if isinstance(error, ImportError) or 'is not installed' in said:
        return f'{place}: {name}: {said}'
    of_torch = frames_of(error)[-1].f_globals.get('__name__', '').startswith('torch.')
    general = of_torch or not str(error)  # a bare assertion
    return f'{place}: {name}: {said}{told_of_arguments(made, part, "" if general else said)}'


def built_by(error: BaseException) -> list[Any]:
    """What was built when a library raised an error, the outermost first.

    Args:
        error (BaseException): The error.

    Returns:
        list: Classes and functions; None for one that was not found.
    """
    return [one.get('obj_cls') for one in _building(error)]


def _building(error: BaseException) -> list[dict]:
    """The local names of each build that an error comes from, the outermost first."""
    return [f.f_locals for f in frames_of(error) if f.f_code.co_name == 'build_from_cfg']


def _not_a_part(part: Any, building: list[dict], here: str, config: Any) -> str:
    """What is said of something that stands where the dict of a part should."""
    outer = next((b['cfg'] for b in reversed(building) if isinstance(b.get('cfg'), dict)), config)
    outer = outer if isinstance(outer, dict) else {}
    path = _path_of(outer, config) or ''
    if isinstance(part, (list, tuple)):
        found = [f'{path}.{name}' for name, value in outer.items() if value is part][:1]
    else:  # equal numbers and texts may be one object
        found = [f'{path}{place}' for place in _places_of(part, outer)]
    found = found or [*_places_of(part, config)]  # one of a list, or what a class passed on
    place = found[0] if len(found) == 1 else path
    several = some((one.lstrip('.') for one in found), 8)
    at = f', which stands at {several}' if len(found) > 1 else ''
    return f'{here}{place}: expected dict(type=...), got {short(part)}{at}'


def _places_of(value: Any, config: Any, path: str = '') -> Iterator[str]:
    """Where a value that is no dict lies in a config."""
    inner: list[tuple[str, Any]] = []
    if isinstance(config, dict):
        inner = [(f'{path}.{key}', one) for key, one in config.items()]
    elif isinstance(config, (list, tuple)):
        inner = [(f'{path}[{number}]', one) for number, one in enumerate(config)]
    for where, one in inner:
        if type(one) is type(value) and one == value:
            yield where
        yield from _places_of(value, one, where)


def _scope_problem(path: str, config: Any, registry: Any) -> str:
    """What is said of a part that is looked up in a library of no such name; empty if it is not."""
    around = [
        one for one in _scopes_of(config) if f'{path}.'.startswith((f'{one[0]}.', f'{one[0]}['))
    ]
    while getattr(registry, 'parent', None) is not None:
        registry = registry.parent
    if registry is None or not around:
        return ''
    place, scope = around[-1]
    there = [*_registered(registry)]
    if scope in there or not isinstance(scope, str):
        return ''
    problem = not_installed(scope) or f'`{scope}` has no registry of models'
    known = dict.fromkeys([*installed(), *there])
    return f'{place}._scope_: {problem} (known: {", ".join(known)})'


def _scopes_of(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Where a config says the library that names of classes are looked up in, the outer first."""
    if isinstance(config, dict):
        if '_scope_' in config:
            yield path, config['_scope_']
        for key, value in config.items():
            yield from _scopes_of(value, f'{path}.{key}')
    elif isinstance(config, (list, tuple)):
        for number, value in enumerate(config):
            yield from _scopes_of(value, f'{path}[{number}]')


def _registered(registry: Any) -> Iterator[str]:
    """The scope of a registry, and those of all below it."""
    yield registry.scope
    for child in registry.children.values():
        yield from _registered(child)


def _similar(name: Any, registry: Any) -> str:
    """The registered names that are close to one that does not exist."""
    known = {one: f'mmkd_plugin.{one}' for one in MODELS.module_dict}
    while registry is not None:
        known |= {one: one for one in registry.module_dict}
        registry = registry.parent
    last = str(name).rpartition('.')[2]
    close = get_close_matches(last, known, n=3, cutoff=0.6)
    names = [f"'{known[one]}'" for one in close if known[one] != name]
    return f'; did you mean {" or ".join(names)}?' if names else ''


def _namesake(made: type, part: dict, argument: str, registry: Any) -> str:
    """What is said of a class that another library has too, with an argument that is unknown here.

    A name without a library is looked up in that of `default_scope`.
    """
    kind, own = part.get('type'), made.__module__.partition('.')[0]
    if not isinstance(kind, str) or '.' in kind or registry is None:
        return ''
    for scope in installed():
        try:
            other = registry.get(f'{scope}.{kind}') if scope != own else None
        except Exception:  # it is there, and cannot be imported
            other = None
        if inspect.isclass(other) and argument in _arguments(other):
            return (
                f"; that of {scope} has it: write default_scope='{scope}' at the top of the config "
                f"if the model is of {scope}, or type='{scope}.{kind}' here"
            )
    return ''


def _arguments(kind: type) -> list[str]:
    """The arguments of a class and of its bases."""
    return list(dict.fromkeys(key for base in kind.__mro__ for key in _keys(base)))


def _keys(kind: type) -> list[str]:
    try:
        found = list(inspect.signature(kind.__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [one.name for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _path_of(part: dict, config: Any, path: str = '') -> str | None:
    """Where a part of a config lies in it, as ``.backbone`` or ``.heads[1]``."""
    if isinstance(config, dict):
        if config is part or config == part:
            return path
        inner = [(f'{path}.{key}', value) for key, value in config.items()]
    elif isinstance(config, (list, tuple)):
        inner = [(f'{path}[{number}]', value) for number, value in enumerate(config)]
    else:
        return None
    found = (_path_of(part, value, where) for where, value in inner)
    exact = next((where for where in found if where is not None), None)
    if exact is None and isinstance(config, dict) and config.get('type') == part.get('type'):
        return path  # what is around it filled in some of its keys
    return exact


def frames_of(error: BaseException) -> list[FrameType]:
    traceback, frames = error.__traceback__, []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames
