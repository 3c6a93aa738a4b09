"""Building: makes parts from the dicts of a config; its errors name the key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mmengine.registry import DefaultScope
from torch import nn

from mmkd_plugin.annotations import check_arguments
from mmkd_plugin.foreign import errors_named, explained, is_of_a_part
from mmkd_plugin.registry import MODELS, named
from mmkd_plugin.words import did_you_mean, short

#: What other tools call a key, and ours of the same meaning; the first that is known is proposed.
HABITS = {
    'architecture': ('student',),
    'model': ('student', 'config'),
    'distill_losses': ('distill',),
    'cfg': ('config',),
    'cfg_path': ('config',),
    'ckpt': ('checkpoint',),
    'ckpt_path': ('checkpoint',),
    'init_cfg': ('checkpoint',),
    'load_from': ('checkpoint',),
    'pretrained': ('checkpoint',),
    'weights': ('checkpoint',),
    'T': ('tau',),
    'temperature': ('tau',),
    'alpha': ('loss_weight',),
    'weight': ('loss_weight',),
    'source': ('tap',),
    'begin': ('start',),
    'end': ('stop',),
    'warmup': ('ramp',),
}

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_keys(here: str, config: Mapping, known: Collection[str], advice: str = '') -> None:
    """Raises an error that names an unknown key and the closest known one.

    Args:
        here (str): Place in the config, for messages.
        config (Mapping): The dict to check.
        known (Collection[str]): The keys that it may have.
        advice (str): What is said of an unknown key if no known one is close, a clause that begins
            with ``'; '``. Defaults to ``''``.

    Raises:
        ValueError: If a key is unknown.
    """
    for key in config:
        if (
            key not in known and key != '_scope_'
        ):  # mmengine's, in what another library's config has
            usual = next((ours for ours in HABITS.get(key, ()) if ours in known), None)
            hint = did_you_mean(str(key), (*known, 'type'), cutoff=0.5)
            hint = f'; did you mean `{usual}`?' if usual else hint or advice
            raise ValueError(f'{here} has an unknown key `{key}`{hint} (known: {", ".join(known)})')


def named_arguments(here: str, missing: Mapping[str, str]) -> Callable[[Callable], Callable]:
    """Makes a constructor say what is wrong with the keys of the config that it is built from.

    Args:
        here (str): What messages call the config.
        missing (Mapping[str, str]): What a config without one of the required keys is told.

    Raises:
        ValueError: In the constructor, if a key is unknown or missing.

    Examples:
        >>> class Model:
        ...     @named_arguments('model', dict(student='the model that trains'))
        ...     def __init__(self, student): ...
        >>> Model(studnet=None)
        Traceback (most recent call last):
        ValueError: model has an unknown key `studnet`; did you mean `student`? (known: student)
    """

    def decorate(init: Callable) -> Callable:
        parameters = dict(list(inspect.signature(init).parameters.items())[1:])

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            check_keys(here, kwargs, parameters)
            given = {*list(parameters)[: len(args)], *kwargs}
            for name, parameter in parameters.items():
                if parameter.default is parameter.empty and name not in given:
                    raise ValueError(f'{here} has no `{name}`: {missing[name]}')
            init(self, *args, **kwargs)

        return checked

    return decorate


def check_compile(value: Any, here: str = '') -> bool:
    """Returns the value of a ``compile`` key if it is a bool.

    Args:
        value (Any): The value.
        here (str): Text before the key in the message. Defaults to ``''``.

    Returns:
        bool: The value.

    Raises:
        ValueError: If the value is not a bool.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{here}compile must be True or False, got {value!r}')
    return value


def build_module(config: Any, here: str, defaults: dict | None = None) -> nn.Module:
    """Builds a module from its dict and fills in the arguments that the config leaves out.

    Args:
        config (dict | nn.Module): ``dict(type='mmkd_plugin.NAME', ...)``. A module is returned as
            it is.
        here (str): Place in the config, for messages.
        defaults (dict, optional): Arguments that the config may leave out. The constructor gets
            those that it has parameters for. Defaults to None.

    Returns:
        nn.Module: The module.

    Raises:
        ValueError: If the type is unknown, or does not take these arguments.
    """
    if isinstance(config, nn.Module):
        return config
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(f"{here}: expected dict(type='mmkd_plugin....'), got {short(config)}")
    kind = kind_of(config['type'], here)
    arguments = {key: value for key, value in config.items() if key not in ('type', '_scope_')}
    try:
        parameters = inspect.signature(kind).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    except (TypeError, ValueError):  # some that are written in C say nothing
        parameters, takes_any = {}, True
    if not takes_any:
        check_keys(here, arguments, parameters)
        defaults = {key: value for key, value in (defaults or {}).items() if key in parameters}
    if is_own(kind):
        check_arguments(kind, arguments, here)
    for name, parameter in parameters.items():
        given = name in arguments or name in (defaults or {})
        if not given and parameter.default is parameter.empty and parameter.kind in NAMED:
            raise ValueError(f'{here} has no `{name}`, which {kind.__name__} needs')
    return constructed(kind, {**(defaults or {}), **arguments}, here, config)


def constructed(kind: Callable, arguments: dict[str, Any], here: str, config: Any) -> Any:
    """Calls a class with the arguments of a config.

    Raises:
        ValueError: If it does not take them. The message begins with the place, and with the key
            if the class says it.
    """
    with errors_named(here, config):
        try:
            return kind(**arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, ValueError) and type(error) is not ValueError:
                raise  # it has more to tell than its text
            if is_of_a_part(error):
                raise  # it is told of that part
            if str(error).partition(' ')[0] in arguments:  # it begins with the key
                raise ValueError(f'{here}.{error}') from error
            raise ValueError(prefixed(here, error)) from error


def kind_of(given: Any, here: str) -> Callable:
    """The class, or the function, behind the ``type`` of a config.

    Raises:
        ValueError: If there is none of this name. The message names close ones.
    """
    kind = given
    name = given.rpartition('.')[2] if isinstance(given, str) else ''
    hint = did_you_mean(name, MODELS.module_dict, 'mmkd_plugin.{}', cutoff=0.5, count=3)
    if isinstance(given, str) and given.strip():
        try:
            kind = _found(given)
        except Exception as error:  # the package that the scope names refuses to be imported
            raise ValueError(f'{explained(error, here, None)}{hint}') from error
    if callable(kind):
        return kind
    if not name.strip():
        raise ValueError(f'{here}.type must be the name of a class, got {short(given)}')
    raise ValueError(
        f'{here}.type: there is no {short(given)}{hint or "; expected the name of a class"}'
    )


def _found(name: str) -> Any:
    """The class of a name: of ours, or of the library whose names the config means."""
    kind = named(MODELS, name)
    scope = DefaultScope.get_current_instance()
    if kind is None and '.' not in name and scope is not None:
        kind = named(MODELS, f'{scope.scope_name}.{name}')
    return kind


def is_own(kind: Any) -> bool:
    """Whether a class is one of this package, whose type hints say what it takes."""
    return str(getattr(kind, '__module__', '')).split('.')[0] == 'mmkd_plugin'


def prefixed(here: str, error: Exception) -> str:
    """Returns the text of an error, with the place in the config in front of it once."""
    return str(error) if str(error).startswith(here) else f'{here}: {error}'
