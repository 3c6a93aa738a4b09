"""What the losses share: sums over several maps, shape checks, precision, argument checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any, Callable, Union

import torch
from torch import Tensor

#: One map, or several (the levels of a pyramid, the stages of a backbone).
Maps = Union[Tensor, Sequence[Tensor]]

#: One factor for all maps, or one for each.
Weight = Union[float, Sequence[float]]

ADD_CONV = 'leave `connector` out so that a 1x1 conv is added, or name one'
ADD_RESIZE = 'leave `connector` out so that a bilinear resize is added, or name one'


def sum_over_maps(
    compare: Callable[..., Tensor],
    student: Maps,
    teacher: Maps,
    weight: Weight = 1.0,
    *others: Sequence[Any],
) -> Tensor:
    """Apply ``compare`` to each pair of maps and add the weighted results up.

    Args:
        compare (Callable): Takes one map of the student, one of the teacher and one element of
            each of ``others``; returns a scalar.
        student (Tensor | Sequence[Tensor]): The student's map or maps.
        teacher (Tensor | Sequence[Tensor]): As many maps of the teacher.
        weight (float | Sequence[float]): Factor on the sum, or one on each result. Default: 1.0.
        others (Sequence): What else ``compare`` takes, each with as many elements as there are
            maps.

    Returns:
        Tensor: A scalar.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If the numbers of maps or of weights differ, or there are no maps.
    """
    students, teachers = as_maps(student, 'student'), as_maps(teacher, 'teacher')
    if len(students) != len(teachers):
        raise ValueError(
            f'numbers of maps differ: student {len(students)}, teacher {len(teachers)}; '
            "a tap element such as 'neck[2]' picks one map"
        )
    if not students:
        raise ValueError('there are no maps to compare: the taps gave empty sequences')
    return weighted_sum([compare(*pair) for pair in zip(students, teachers, *others)], weight)


def weighted_sum(losses: Sequence[Tensor], weight: Weight) -> Tensor:
    """Add scalars up, with one factor on the sum or one factor on each.

    Raises:
        ValueError: If there are several weights, and not as many as losses.
    """
    if not isinstance(weight, Sequence):
        return weight * sum(losses[1:], start=losses[0])
    if len(weight) != len(losses):
        raise ValueError(
            f'loss_weight has {len(weight)} entries for {len(losses)} comparisons; give one number '
            'for all, or one for each map'
        )
    terms = [factor * loss for factor, loss in zip(weight, losses)]
    return sum(terms[1:], start=terms[0])


def as_maps(maps: Maps, whose: str) -> Sequence[Tensor]:
    """One map or several as a sequence of maps.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(maps, Tensor):
        return (maps,)
    got = type(maps).__name__
    if isinstance(maps, (list, tuple)):
        if all(isinstance(x, Tensor) for x in maps):
            return maps
        got += f' of {[type(x).__name__ for x in maps]}'
    raise TypeError(f'{whose} must be a tensor, or a list or tuple of tensors, got {got}')


def check_shapes(
    student: Tensor,
    teacher: Tensor,
    *,
    ndims: tuple[int, ...] = (4,),
    same_channels: bool = True,
    same_size: bool = True,
    size_hint: str = ADD_RESIZE,
) -> None:
    """Refuse two maps that a loss cannot compare; nothing is ever broadcast.

    Args:
        student (Tensor): The student's map, (N, C, H, W) or (N, C).
        teacher (Tensor): The teacher's map.
        ndims (tuple[int, ...]): The numbers of dimensions that the loss takes. Default: (4,).
        same_channels (bool): Whether the channel counts must be equal. Default: True.
        same_size (bool): Whether heights and widths must be equal. Default: True.
        size_hint (str): What to advise when the sizes differ.

    Raises:
        ValueError: If they cannot be compared. It names both shapes and what would help.
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
        raise ValueError(f'channel counts differ: {shapes}; {ADD_CONV}')
    if same_size and s[2:] != t[2:]:
        raise ValueError(f'map sizes differ: {shapes}; {size_hint}')


@contextmanager
def full_precision(student: Tensor, teacher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hand out the pair in float32 or wider, the teacher detached, with autocast off.

    Args:
        student (Tensor): The student's map, of any floating-point type.
        teacher (Tensor): The teacher's map, of any floating-point type.

    Yields:
        tuple[Tensor, Tensor]: Both in one common type: float64 if either is, else float32.
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    with _no_autocast(student.device.type):
        yield student.to(dtype), teacher.detach().to(dtype)


def _no_autocast(device_type: str) -> AbstractContextManager:
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a device without autocast (meta, say) has none to switch off
        return nullcontext()


def tempered_kl(student: Tensor, teacher: Tensor, tau: float, dim: int) -> Tensor:
    """``KL(p_tau(teacher) || p_tau(student))`` with the softmax along ``dim``, summed along it.

    Args:
        student (Tensor): Logits, in float32 or wider.
        teacher (Tensor): Logits of the same shape, without gradient.
        tau (float): Temperature: ``p_tau(x) = softmax(x / tau)``.
        dim (int): The dimension of the softmax.

    Returns:
        Tensor: The divergences; the shape of the inputs without ``dim``.
    """
    log_s = torch.log_softmax(student / tau, dim)
    log_t = torch.log_softmax(teacher / tau, dim)
    p_t = log_t.exp()
    # In place: nobody needs log_t any more, and these maps are the largest tensors of the loss.
    return log_t.sub_(log_s).mul_(p_t).sum(dim)


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


def positive_number(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above 0, else raise naming the argument.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is infinite, NaN, zero or negative.
    """
    if finite_number(name, value) <= 0:
        raise ValueError(f'{name} must be above 0, got {value!r}')
    return value


def loss_weights(value: Weight) -> Weight:
    """Return a ``loss_weight`` if it is a finite number or a sequence of them, as a tuple.

    Raises:
        TypeError: If it, or an entry, is not a number.
        ValueError: If it is empty, or one is infinite or NaN.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError('loss_weight must be a number or one number per map, got none')
        return tuple(finite_number('loss_weight', entry) for entry in value)
    return finite_number('loss_weight', value)
