"""Building: parts from the dicts of a config, with errors that name the key."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from mmkd_plugin.registry import MODELS
from mmkd_plugin.words import did_you_mean


def check_keys(here: str, config: dict, known: Any) -> None:
    """Raises a ValueError that names an unknown key and the closest known one."""
    for key in config:
        if key not in known:
            hint = did_you_mean(str(key), known, cutoff=0.5)
            raise ValueError(f'{here} has an unknown key `{key}`{hint} (known: {", ".join(known)})')


def check_compile(value: Any, here: str = '') -> bool:
    """Returns the value of a ``compile`` key if it is a bool.

    Args:
        value (bool): The value.
        here (str): What the message puts before the key. Defaults to nothing.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{here}compile must be True or False, got {value!r}')
    return value


def build_module(config: Any, here: str, defaults: dict | None = None) -> nn.Module:
    """Builds a module from its dict, with arguments filled in where it has them.

    Args:
        config (dict | nn.Module): ``dict(type='mmkd_plugin.NAME', ...)``; a module stays as it is.
        here (str): What messages call the place in the config.
        defaults (dict, optional): Arguments that the config may leave out. Defaults to None.

    Raises:
        ValueError: If there is no such module, or it does not take these arguments.
    """
    if isinstance(config, nn.Module):
        return config
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(f"{here}: expected dict(type='mmkd_plugin....'), got {config!r}")
    kind = MODELS.get(config['type']) if isinstance(config['type'], str) else config['type']
    if kind is None:
        names = [f'mmkd_plugin.{name}' for name in MODELS.module_dict]
        hint = did_you_mean(config['type'], names, '{}', cutoff=0.4, count=3)
        raise ValueError(f"{here}: there is no '{config['type']}'{hint}")
    arguments = {key: value for key, value in config.items() if key not in ('type', '_scope_')}
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keys(here, arguments, parameters)
        defaults = {key: value for key, value in (defaults or {}).items() if key in parameters}
    try:
        return kind(**{**(defaults or {}), **arguments})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{here}: {error}') from error


def prefixed(here: str, error: Exception) -> str:
    return str(error) if str(error).startswith(here) else f'{here}: {error}'
