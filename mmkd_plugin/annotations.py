"""Annotations: whether arguments of a config are of the kinds that type hints say."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmkd_plugin.words import short

UNIONS = (Union, types.UnionType)
LARGEST = 3e38  # of float32


def check_arguments(kind: Any, arguments: Mapping[str, Any], here: str) -> None:
    """Compares arguments with the type hints of what is going to be called with them.

    An argument without a hint passes, and so does one whose hint is of a form that is not known.

    Args:
        kind (Callable): A class or a function.
        arguments (Mapping[str, Any]): Its arguments by name.
        here (str): What messages call the place in the config.

    Raises:
        ValueError: If one of them is of another kind. The message names its key.

    Examples:
        >>> def scale(factor: float, axes: list[int] | None = None): ...
        >>> check_arguments(scale, dict(factor=2, axes=[0, 1]), 'here')
        >>> check_arguments(scale, dict(factor='2'), 'here')
        Traceback (most recent call last):
        ValueError: here.factor must be a finite number, got '2'
    """
    hints = hints_of(kind)
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            raise ValueError(f'{here}.{name} must be {expected(hints[name])}, got {short(value)}')


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The type hints of the arguments of a class or a function, empty if they cannot be read."""
    try:
        hints = get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    except (AttributeError, NameError, TypeError):
        return {}
    return {name: hint for name, hint in hints.items() if name != 'return'}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint says.

    A bool is neither an int nor a float here, a float is finite, a str is not empty, and a
    Sequence is a list or a tuple.

    Examples:
        >>> fits(3, float), fits(True, int), fits('ab', list[str]), fits(None, int | None)
        (True, False, False, True)
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is not None and not isinstance(origin, type):
        return True
    kind = origin or hint
    if kind in (None, type(None)):
        return value is None
    if kind is bool:
        return type(value) is bool
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return _is_finite(value)
    if kind is str:
        return isinstance(value, str) and value.strip() != ''
    if kind in (list, tuple, Sequence):
        items = [arg for arg in args if arg is not Ellipsis]
        several = isinstance(value, (list, tuple))
        return several and all(not items or fits(one, items[0]) for one in value)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    if kind is Any or not isinstance(kind, type):
        return True
    return isinstance(value, kind)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return not math.isnan(value) and abs(value) <= LARGEST


WORDS = {
    None: 'None',
    type(None): 'None',
    bool: 'True or False',
    int: 'a whole number',
    float: 'a finite number',
    str: 'a text that is not empty',
    dict: 'a dict',
    Mapping: 'a dict',
}


def expected(hint: Any) -> str:
    """A type hint in the words of a message.

    Examples:
        >>> expected(str | list[str] | None)
        'a text that is not empty, a list of texts or None'
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        texts = list(dict.fromkeys(expected(arg) for arg in args))
        return ' or '.join([', '.join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
    if origin is Literal:
        return ' or '.join(map(repr, args))
    kind = origin or hint
    if kind in (list, tuple, Sequence):
        items = [arg for arg in args if arg is not Ellipsis and arg in (int, float, str)]
        words = {int: 'whole numbers', float: 'finite numbers', str: 'texts'}
        return f'a list of {words[items[0]]}' if items else 'a list'
    return WORDS.get(kind, getattr(kind, '__name__', str(kind)))
