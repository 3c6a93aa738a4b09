"""Kinds of values in a saved state, compared with those of the object that takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from mmkd_plugin.words import short

#: Whole numbers from here on are more than torch takes.
LARGEST = 2**63


def unlike(saved: Any, own: Any, here: str) -> Iterator[str]:
    """What of a saved state is of another kind than that of a running object.

    Keys that one of them lacks are no difference.

    Args:
        saved (Any): The saved state: mappings, lists, numbers, texts and tensors.
        own (Any): That of the object.
        here (str): What messages call it.

    Yields:
        str: A text on a value, and the next.

    Examples:
        >>> list(unlike(dict(lr=0.1, nesterov=None), dict(lr=1, nesterov=False), 'group'))
        []
        >>> list(unlike(dict(lr='x', betas=[0.9, math.nan]), dict(lr=1, betas=(0, 0)), 'group'))
        ["group.lr is 'x'", 'group.betas.1 is nan']
    """
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        for key in own:
            if key in saved:
                yield from unlike(saved[key], own[key], f'{here}.{key}')
    elif isinstance(own, (list, tuple)) and isinstance(saved, (list, tuple)):
        for number, pair in enumerate(zip(saved, own)):
            yield from unlike(*pair, f'{here}.{number}')
    elif not _alike(saved, own):
        yield f'{here} is {told(saved)}'


def _alike(saved: Any, own: Any) -> bool:
    if own is None:
        return isinstance(saved, (bool, float, int, str, type(None)))
    if saved is None:  # not yet chosen, as torch says of some switches
        return isinstance(own, (bool, str))
    if isinstance(own, (bool, str)) or isinstance(saved, (bool, str)):
        return type(own) is type(saved)
    if isinstance(saved, Tensor):
        if isinstance(own, Tensor):
            same = saved.numel() == own.numel()
        else:  # a learning rate may be a tensor; one in a list is none that torch can use
            same = isinstance(own, Real) and saved.ndim == 0
        return same and bool(saved.isfinite().all())
    if isinstance(own, (Real, Tensor)):
        small = not isinstance(saved, int) or abs(saved) < LARGEST
        return isinstance(saved, Real) and small and math.isfinite(saved)
    return not isinstance(own, (list, tuple, Mapping))


def told(value: Any) -> str:
    """A value in a message; of a large one what it is.

    Examples:
        >>> told(None), told([1, 2, 3, 4, 5, 6, 7])
        ('None', 'a list')
    """
    if isinstance(value, Tensor):
        return f'a tensor {tuple(value.shape)}'
    text = short(value)
    plain = value is None or isinstance(value, (str, int, float))
    return text if plain or len(text) <= 20 else f'a {type(value).__name__}'
