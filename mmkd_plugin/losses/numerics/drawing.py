"""Random numbers from a seed alone: the same on each device, in each process, and when compiled.

PyTorch's generators have a state, which would have to be saved, and torch.compile does not take
them. These numbers are a function of a seed, so a seed that is known again gives them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Of SplitMix64, as signed numbers: the step between states, and the two factors that mix them.
STEP, FIRST, SECOND = (
    x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
BITS = 24  # of a uniform number: what float32 holds


def uniform(seed: Tensor, shape: Sequence[int], stream: int = 0) -> Tensor:
    """Uniform numbers from 0 to 1, without 1: each a hash of the seed and of its place.

    Args:
        seed (Tensor): A whole number, int64 of shape ().
        shape (Sequence[int]): Shape of the numbers.
        stream (int): Numbers of other streams are unrelated. Defaults to 0.

    Returns:
        Tensor: float32, on the device of the seed.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses.numerics.drawing import uniform
        >>> x = uniform(torch.tensor(5), (2, 300))
        >>> x.shape, bool((x == uniform(torch.tensor(5), (2, 300))).all())
        (torch.Size([2, 300]), True)
        >>> 0.4 < x.mean() < 0.6
        tensor(True)
    """
    places = torch.arange(1, math.prod(shape) + 1, device=seed.device)
    start = _mixed(_mixed(seed) + stream)
    numbers = _shifted(_mixed(start + places * STEP), 64 - BITS)
    return (numbers.float() * 2.0**-BITS).view(*shape)


def some_of(seed: Tensor, count: int, wanted: int, stream: int = 0) -> Tensor:
    """``wanted`` different whole numbers below ``count``, in random order; all if there are fewer.

    Args:
        seed (Tensor): A whole number, int64 of shape ().
        count (int): How many there are.
        wanted (int): How many to draw.
        stream (int): See :func:`uniform`. Defaults to 0.

    Returns:
        Tensor: int64, on the device of the seed.
    """
    return uniform(seed, (count,), stream).argsort()[:wanted]


def fresh_seed(device: torch.device) -> Tensor:
    """A seed from PyTorch's own random numbers, for a loss that is called without one."""
    return torch.randint(2**62, (), device=device)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64: products wrap around."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifted to the right as if there was no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
