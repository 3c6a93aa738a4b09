"""Building: makes parts from the dicts of a config; its errors name the key."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn

from mmkd_plugin.registry import MODELS
from mmkd_plugin.words import did_you_mean


def check_keys(here: str, config: dict, known: Collection[str]) -> None:
    """Raises an error that names an unknown key and the closest known one.

    Args:
        here (str): Place in the config, for messages.
        config (dict): The dict to check.
        known (Collection[str]): The keys that it may have.

    Raises:
        ValueError: If a key is unknown.
    """
    for key in config:
        if key not in known:
            hint = did_you_mean(str(key), known, cutoff=0.5)
            raise ValueError(f'{here} has an unknown key `{key}`{hint} (known: {", ".join(known)})')


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
    """Returns the text of an error, with the place in the config in front of it once."""
    return str(error) if str(error).startswith(here) else f'{here}: {error}'
