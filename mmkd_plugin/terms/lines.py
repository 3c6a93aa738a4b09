"""Checks of a line of ``distill``: its name, its keys, and what its parts can be called with."""

from __future__ import annotations

import inspect
import keyword
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import build_module, check_keys
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.taps import Taps
from mmkd_plugin.terms.auto_weight import auto_share
from mmkd_plugin.words import short

KEYS = (
    'tap',
    'student_tap',
    'teacher_tap',
    'teacher',
    'combine',
    'loss',
    'explainer',
    'connector',
    'teacher_connector',
    'norm',
    'through',
    'queries',
    'schedule',
    'compile',
)

TAPS = ('tap', 'student_tap', 'teacher_tap')

#: Attributes of what holds the terms; none of them can name one.
TAKEN = frozenset(dir(nn.ModuleDict()))


def can_name_a_term(name: Any) -> bool:
    """Whether a key can be an attribute of a module and an argument of a dict in a config.

    Examples:
        >>> [can_name_a_term(name) for name in ('cwd', 'class', 'training', 'a.b', 5)]
        [True, False, False, False, False]
    """
    return str(name).isidentifier() and not keyword.iskeyword(name) and str(name) not in TAKEN


def check_line(here: str, name: str, config: Any) -> None:
    """Refuses a line of ``distill`` with a name, a form or keys that cannot be used."""
    if not can_name_a_term(name):
        raise ValueError(
            f"{here}: '{name}' cannot name a term; take another word of letters, digits and '_'"
        )
    if not isinstance(config, dict):
        raise ValueError(
            f'{here}: expected dict(tap=..., loss=dict(type=...)), got {short(config)}'
        )
    check_keys(here, config, KEYS)
    if 'loss' not in config:
        raise ValueError(
            f"{here} has no `loss`: add loss=dict(type='mmkd_plugin.ChannelWiseLoss'), say"
        )
    taps = [key for key in TAPS if config.get(key) is not None]
    if config.get('queries') is not None:
        if taps:
            raise ValueError(
                f'{here} has `{taps[0]}` beside `queries`: answers of the decoders are compared, '
                'so leave it out'
            )
        config = {**config, 'tap': 'decoder'}
    if any(config.get(key, config.get('tap')) is None for key in ('student_tap', 'teacher_tap')):
        raise ValueError(
            f"{here} has no tap: add tap='module.path', or `student_tap` and `teacher_tap` "
            'where the models differ'
        )
    _check_taps(here, config)
    if not fits(config.get('norm'), str | list[str] | None):
        raise ValueError(
            f'{here}.norm must be the name of a batch norm, such as '
            f"'backbone.layer4.2.bn3', or a list of names, got {short(config['norm'])}"
        )


def _check_taps(here: str, config: dict) -> None:
    """Refuses a text that is no tap, a tap that nothing reads, and the same pair of taps twice."""
    for key in TAPS:
        if config.get(key) is not None:
            try:
                Taps.parse(config[key])
            except ValueError as error:
                raise ValueError(f'{here}.{key}: {error}') from error
    unused = set(TAPS) <= set(config) and config['tap'] is not None
    if unused:
        raise ValueError(
            f'{here} has `tap` beside `student_tap` and `teacher_tap`, so nothing reads it: '
            'leave it out'
        )
    ours, theirs = (config.get(key, config.get('tap')) for key in ('student_tap', 'teacher_tap'))
    if not isinstance(ours, (list, tuple)) and not isinstance(theirs, (list, tuple)):
        return
    lists = [x if isinstance(x, (list, tuple)) else [x] for x in (ours, theirs)]
    longest = max(map(len, lists))
    pairs = list(zip(*(x * longest if len(x) == 1 else x for x in lists)))
    twice = next((pair for number, pair in enumerate(pairs) if pair in pairs[:number]), None)
    if twice is not None:
        raise ValueError(
            f'{here} compares {short(twice[0])} of the student with {short(twice[1])} of the '
            'teacher twice; name each pair of taps once'
        )


def check_weight(loss: nn.Module, here: str) -> None:
    """Refuses a loss with a ``loss_weight`` that teaches nothing, or the contrary.

    Args:
        loss (nn.Module): The loss.
        here (str): What messages call its place in the config.

    Raises:
        ValueError: If the weight is 0, negative or not finite.
    """
    given = getattr(loss, 'loss_weight', None)
    weights = [w for w in (given if isinstance(given, (list, tuple)) else [given]) if _number(w)]
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            words = 'be negative' if weight < 0 else f'be {weight}'
            raise ValueError(f'{here}.loss_weight cannot {words}, got {given!r}')
    if weights and not any(weights):
        raise ValueError(
            f'{here}.loss_weight={given!r} teaches nothing: leave the term out, or switch it off '
            'for a part of the run with its `schedule`'
        )


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def takes(module: Any, names: tuple[str, ...], here: str, what: str, **keywords: Any) -> None:
    """Refuses something that cannot be called with as many maps.

    Args:
        module (Any): What was built from a config.
        names (tuple[str, ...]): What it is going to be called with.
        here (str): What messages call its place in the config.
        what (str): What it should be, such as ``'a loss'``.
        **keywords (Any): What it is going to be called with by name.

    Raises:
        ValueError: If it is not a module, or its ``forward`` takes other arguments.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise ValueError(f'{here}: {kind} is not {what}: it is not a torch.nn.Module')
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # some are written in C
        return
    try:
        signature.bind(*names, **keywords)
    except TypeError:
        wanted = ', '.join((*names, *(f'{key}=...' for key in keywords)))
        raise ValueError(
            f'{here}: {kind} is not {what}: its forward cannot be called with ({wanted})'
        ) from None


def loss_of(config: Any, here: str) -> tuple[nn.Module, float | None]:
    """The loss of a line, and the share by which its weight is found.

    Args:
        config (Any): The ``loss`` of the line.
        here (str): What messages call its place in the config.

    Returns:
        tuple[nn.Module, float | None]: The share is None if the weight is given.

    Raises:
        ValueError: If it cannot be built, or is no loss.
    """
    weight = config.get('loss_weight', 1.0) if isinstance(config, dict) else 1.0
    found = auto_share(weight, f'{here}.loss_weight') is not None
    loss = build_module({**config, 'loss_weight': 1.0} if found else config, here)
    traits = LossTraits.of(loss)
    share = auto_share(weight, f'{here}.loss_weight', traits.auto_share)
    needs = dict.fromkeys(traits.needs)
    takes(loss, ('student', 'teacher'), here, 'a loss', **needs)
    check_weight(loss, here)
    return loss, share


def teachers_of(here: str, config: dict, teachers: Sequence[str]) -> tuple[str, ...]:
    """The names of the teachers of a line.

    Args:
        here (str): What messages call the line.
        config (dict): The line.
        teachers (Sequence[str]): Names of all teachers.

    Raises:
        ValueError: If it names one that there is not, or none of several.
    """
    given = config.get('teacher', teachers[0] if len(teachers) == 1 else None)
    names = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    wrong = next((name for name in names or (None,) if name not in teachers), None)
    if wrong is not None or not names or None in names:
        said = 'does not say which teacher' if wrong is None else f"has teacher='{wrong}'"
        raise ValueError(
            f'{here} {said}; the teachers are: {", ".join(teachers)}; write '
            f"teacher='{next(iter(teachers))}', say"
        )
    return names
