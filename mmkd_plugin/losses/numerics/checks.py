"""Checks of arguments, of the shapes of maps, and of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.maps import Weight

#: The least and the largest temperature of a softmax. Beyond them float32 rounds to one class, or
#: cannot tell the classes apart.
TEMPERATURES = (0.001, 1000)

#: The largest factor on a loss; the gradient of a larger one is soon infinite in float32.
LARGEST_WEIGHT = 1e12

ADD_CONV = 'leave `connector` out so that a 1x1 conv is added, or name one'
ADD_RESIZE = 'leave `connector` out so that a bilinear resize is added, or name one'


def check_shapes(
    student: Tensor,
    teacher: Tensor,
    *,
    ndims: tuple[int, ...] = (4,),
    same_channels: bool = True,
    same_size: bool = True,
    size_hint: str = ADD_RESIZE,
    channels_hint: str = ADD_CONV,
) -> None:
    """Refuse two maps that a loss cannot compare; nothing is ever broadcast.

    Args:
        student (Tensor): The student's map, (N, C, H, W) or (N, C).
        teacher (Tensor): The teacher's map.
        ndims (tuple[int, ...]): The numbers of dimensions that the loss takes. Defaults to (4,).
        same_channels (bool): Whether the channel counts must be equal. Defaults to True.
        same_size (bool): Whether heights and widths must be equal. Defaults to True.
        size_hint (str): The advice to give when the sizes differ.
        channels_hint (str): The advice to give when the channel counts differ.

    Raises:
        ValueError: If they cannot be compared. It names both shapes and a remedy.
    """
    s, t = tuple(student.shape), tuple(teacher.shape)
    shapes = f'student {s}, teacher {t}'
    if len(s) not in ndims or len(s) != len(t):
        forms = ' or '.join({2: '(N, C)', 4: '(N, C, H, W)'}[n] for n in ndims)
        raise ValueError(
            f'expected two tensors {forms}: {shapes}; tap modules whose outputs have that form'
        )
    if 0 in s[1:] or 0 in t[1:]:
        raise ValueError(f'nothing to compare: {shapes}; tap modules whose outputs are not empty')
    if s[0] != t[0]:
        raise ValueError(
            f'batch sizes differ: {shapes}; choose taps that see the same images in both models'
        )
    if same_channels and s[1] != t[1]:
        raise ValueError(f'channel counts differ: {shapes}; {channels_hint}')
    if same_size and s[2:] != t[2:]:
        raise ValueError(f'map sizes differ: {shapes}; {size_hint}')


def labels_at(x: Tensor, labels: Tensor) -> Tensor:
    """The label of each position of a map: resized by nearest if the sizes differ.

    Args:
        x (Tensor): A map of the student, (N, C, H, W); only its shape is read.
        labels (Tensor): Integers, (N, h, w).

    Returns:
        Tensor: The labels as int64, (N, H, W).

    Raises:
        TypeError: If the labels are not a tensor of integers.
        ValueError: If their shape does not fit.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f'labels must be a tensor of integers, got {type(labels).__name__}')
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f'labels must be integers, got {labels.dtype}')
    if labels.dim() != 3 or labels.shape[0] != x.shape[0] or 0 in labels.shape[1:]:
        raise ValueError(
            f'labels do not fit the maps: labels {tuple(labels.shape)}, student '
            f'{tuple(x.shape)}; give one (H, W) label map per image, stacked to (N, H, W)'
        )
    if labels.shape[1:] != x.shape[2:]:
        # F.interpolate takes no int64, and float32 does not hold every id: resize the positions
        rows, columns = (
            F.interpolate(torch.arange(old, device=labels.device)[None, None].float(), new).long()
            for old, new in zip(labels.shape[1:], x.shape[2:])
        )
        labels = labels[:, rows.view(-1, 1), columns.view(1, -1)]
    # uint8 compares with a number outside of its range as with that number modulo 256
    return labels.long()


def kept_positions(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Where the labels, resized to the logits by nearest, are not ``ignore_index``.

    Args:
        logits (Tensor): Logits, (N, C, H, W); only the shape is read.
        labels (Tensor): Integer labels, (N, h, w).
        ignore_index (int): The label of the positions to leave out.

    Returns:
        Tensor: Booleans, (N, H, W).

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If they are missing, or their shape does not fit.
    """
    if labels is None:
        raise ValueError(
            f'ignore_index={ignore_index} needs `labels`; give them, or leave `ignore_index` out'
        )
    return labels_at(logits, labels) != ignore_index


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices, else raise naming the argument and them.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}')
    return value


def true_or_false(name: str, value: bool) -> bool:
    """Return ``value`` if it is a bool, else raise naming the argument.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r}')
    return value


def index_or_none(name: str, value: int | None) -> int | None:
    """Return ``value`` if it is an int or None, else raise naming the argument.

    Raises:
        TypeError: If it is neither.
    """
    if value is not None and type(value) is not int:
        raise TypeError(f'{name} must be an int or None, got {value!r}')
    return value


def an_index(name: str, value: int) -> int:
    """Return ``value`` if it is an int, else raise naming the argument.

    Raises:
        TypeError: If it is not.
    """
    if type(value) is not int:
        raise TypeError(f'{name} must be an int, got {value!r}')
    return value


def finite_number(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number, else raise naming the argument.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {value!r}')
    if not math.isfinite(value):
        raise ValueError(f'{name} must be finite, got {value!r}')
    return value


def whole_number(name: str, value: int) -> int:
    """Return a whole number from 1 on; refuse others.

    Args:
        name (str): What the message calls it.
        value (int): The number.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f'{name} must be at least 1 and whole, got {value!r}')
    return value


def positive_number(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above 0, else raise naming the argument.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is infinite, NaN, zero or negative.
    """
    if finite_number(name, value) <= 0:
        raise ValueError(f'{name} must be above 0, got {value!r}')
    return value


def share_below_one(name: str, value: float) -> float:
    """Return ``value`` if it is a number from 0 on and below 1, else raise naming the argument.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not finite, or out of this range.
    """
    if not 0 <= finite_number(name, value) < 1:
        raise ValueError(f'{name} must be at least 0 and below 1, got {value!r}')
    return value


def temperature(name: str, value: float) -> float:
    """Return ``value`` if it is a temperature at which float32 tells logits apart.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not finite, or not from 0.001 to 1000.
    """
    low, high = TEMPERATURES
    if not low <= positive_number(name, value) <= high:
        raise ValueError(f'{name} must be from {low} to {high}, got {value!r}')
    return value


def weight(name: str, value: float) -> float:
    """Return ``value`` if it can be the factor on a loss.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not finite, negative, or above 1e12.
    """
    if not 0 <= finite_number(name, value) <= LARGEST_WEIGHT:
        raise ValueError(
            f'{name} cannot be negative, got {value!r}'
            if value < 0
            else f'{name} must be at most {LARGEST_WEIGHT:g}, got {value!r}'
        )
    return value


def loss_weights(value: Weight) -> Weight:
    """Return a ``loss_weight`` if it is a number from 0 on or a sequence of them, as a tuple.

    Raises:
        TypeError: If it, or an entry, is not a number.
        ValueError: If it is empty, or one is infinite, NaN, negative or above 1e12.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError('loss_weight must be a number or one number per map, got none')
        return tuple(weight('loss_weight', entry) for entry in value)
    return weight('loss_weight', value)
