"""What the losses share: sums over maps, shape checks, labels, precision, argument checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from torch.compiler import is_compiling
except ImportError:  # torch 2.0
    from torch._dynamo import is_compiling

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
    students, teachers = as_pairs(student, teacher)
    return weighted_sum([compare(*pair) for pair in zip(students, teachers, *others)], weight)


def as_pairs(student: Maps, teacher: Maps) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The maps of the student and as many of the teacher, as two sequences.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If the numbers of maps differ, or there are no maps.
    """
    students, teachers = as_maps(student, 'student'), as_maps(teacher, 'teacher')
    if len(students) != len(teachers):
        raise ValueError(
            f'numbers of maps differ: student {len(students)}, teacher {len(teachers)}; '
            "a tap element such as 'neck[2]' picks one map"
        )
    if not students:
        raise ValueError('there are no maps to compare: the taps gave empty sequences')
    return students, teachers


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


@contextmanager
def full_precision(student: Tensor, teacher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hand out the pair in float32 or wider, the teacher detached, with autocast off.

    Args:
        student (Tensor): The student's map, of any floating-point type.
        teacher (Tensor): The teacher's map, of any floating-point type.

    Yields:
        tuple[Tensor, Tensor]: Both in one common type: float64 if either is, else float32.
    """
    dtype = common_type(student, teacher)
    with no_autocast(student.device.type):
        yield student.to(dtype), teacher.detach().to(dtype)


def common_type(student: Tensor, teacher: Tensor) -> torch.dtype:
    """The type to compare two tensors in: float64 if either is, else float32."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def no_autocast(device_type: str) -> AbstractContextManager:
    """Autocast off, on devices that have it."""
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a device without autocast (meta, say) has none to switch off
        return nullcontext()


def with_gradient(compute: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """A scalar whose gradient is computed along with it, by formula: all that is saved is that.

    Args:
        compute (Callable): Takes ``x`` and returns the scalar and its gradient with respect to
            ``x``. Nothing in it is recorded.
        x (Tensor): Of any floating-point type; that of the gradient may be wider.

    Returns:
        Tensor: The scalar. It can be differentiated once.
    """
    with torch.no_grad():
        value, gradient = compute(x)
    return KnownGradient.apply(x, value, gradient)


class KnownGradient(torch.autograd.Function):
    """See :func:`with_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        gradient = gradient * grad if _graph_is_kept() else gradient.mul_(grad)
        return gradient.to(ctx.dtype), None, None


def refuse_second_derivative() -> None:
    """For the backward pass of a function whose gradient cannot be differentiated.

    ``once_differentiable`` complains only where the incoming gradient is differentiable itself.

    Raises:
        RuntimeError: If a graph of the gradient is wanted.
    """
    if torch.is_grad_enabled() and not is_compiling():
        raise RuntimeError('this loss has no second derivative: leave create_graph=True out')


def _graph_is_kept() -> bool:
    """Whether another backward pass may need what was saved. PyTorch's compiled code asks too."""
    asked = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return is_compiling() or asked is None or asked()


def gram_gap(s: Tensor, t: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """``||s^T s - t^T t||_F^2 / count``, summed over the batch, without the larger Gram matrices.

    With ``D = s^T s - t^T t``, its gradient is ``4 s D / count``. Where there are more columns than
    rows, the n x n matrices are never built. What stands in for them must not subtract large sums
    of float32, or the loss drowns in rounding once the student is close to the teacher:

    - equal numbers of rows: with ``d = s - t``, ``D = d^T s + s^T d - d^T d``, so that with
      ``p = s + t`` the sum is ``(<d d^T, p p^T> + <d p^T, p d^T>) / 2``, and the gradient
      ``4 (s s^T - s d^T) d + 4 (s d^T) s``. Every term shrinks with ``d``;
    - other numbers: ``||s s^T||^2 - 2 ||s t^T||^2 + ||t t^T||^2``, added up in float64, and
      ``4 (s s^T) s - 4 (s t^T) t``.

    Args:
        s (Tensor): The student's matrices, (N, C_s, n).
        t (Tensor): The teacher's matrices, (N, C_t, n).
        count (int): What makes a mean of the sum. Default: 1.

    Returns:
        tuple[Tensor, Tensor]: A scalar, never below 0, and its gradient with respect to ``s``.
    """
    (_, c_s, columns), c_t = s.shape, t.shape[1]
    if columns <= max(c_s, c_t):
        if c_s == c_t:
            half = (s - t).mT @ (s + t)
            gap = (half + half.mT) / 2  # of one product, where the two below would take two
        else:
            gap = s.mT @ s - t.mT @ t
        return gap.square().sum() / count, s @ (gap * 4 / count)
    if c_s == c_t:
        d = s - t
        ss, sd, dd = s @ s.mT, s @ d.mT, d @ d.mT
        pd = 2 * sd - dd
        pp = 4 * ss - 2 * (sd + sd.mT) + dd
        value = ((dd * pp).sum() + (pd * pd.mT).sum()) / 2
        of_d, of_s = (x * 4 / count for x in (ss - sd, sd))
        return value.clamp(min=0) / count, (of_d @ d).baddbmm_(of_s, s)
    ss, st, tt = s @ s.mT, s @ t.mT, t @ t.mT
    value = squared_norm(ss) - 2 * squared_norm(st) + squared_norm(tt)
    of_s, of_t = ss * 4 / count, st * -4 / count
    return value.clamp(min=0).to(s.dtype) / count, (of_s @ s).baddbmm_(of_t, t)


def squared_norm(x: Tensor) -> Tensor:
    """The sum of the squares of all entries, added up in the widest type."""
    return x.square().sum(dtype=widest(x))


def widest(x: Tensor) -> torch.dtype:
    """The type to add up differences of large sums in: float64, where the device has it."""
    return torch.float32 if x.device.type == 'mps' else torch.float64


def unit_vectors(x: Tensor, detach_norm: bool = False, eps: float = 1e-8) -> Tensor:
    """Divide the channel vector of each position by its L2 norm.

    A vector no longer than ``eps`` has no direction: it becomes zero (cosine 0 with all others)
    and gets no gradient. Dividing by ``max(norm, eps)`` gives it the same value, but a gradient of
    1e8, which float16 turns into infinity.

    Args:
        x (Tensor): (N, C, ...), in float32 or wider.
        detach_norm (bool): Treat the norm as a constant in the gradient. Default: False.
        eps (float): See above. Default: 1e-8.

    Returns:
        Tensor: Vectors of length 1 or 0 along dimension 1, the shape of the input.
    """
    squares = (x.detach() if detach_norm else x).square().sum(1, keepdim=True)
    return x / squares.masked_fill(squares <= eps**2, math.inf).sqrt()


def lengths(x: Tensor, eps: float = 1e-8) -> Tensor:
    """The L2 norms along dimension 1, which stays; infinite where no larger than ``eps``.

    Dividing by them is what :func:`unit_vectors` does.
    """
    # vector_norm is 20 times as slow in maps on a CPU
    return lengths_from(x.square().sum(1, keepdim=True), eps)


def lengths_from(squares: Tensor, eps: float = 1e-8) -> Tensor:
    """The roots, in place; infinite where no larger than ``eps``."""
    return squares.masked_fill_(squares <= eps**2, math.inf).sqrt_()


def lengths_of_samples(x: Tensor, eps: float = 1e-12) -> Tensor:
    """The L2 norm of each sample, (N, 1, ..., 1); infinite where no larger than ``eps``."""
    return lengths(x.flatten(1), eps).view(-1, *[1] * (x.dim() - 1))


def through_lengths(gradient: Tensor, x: Tensor, length: Tensor) -> Tensor:
    """From the gradient ``g`` of ``u = x / |x|`` that of ``x``: ``(g - u (u . g)) / |x|``.

    Args:
        gradient (Tensor): ``g``, (N, C, ...).
        x (Tensor): (N, C, ...).
        length (Tensor): What :func:`lengths` gives for ``x``.

    Returns:
        Tensor: The gradient with respect to ``x``.
    """
    along = (x * gradient).sum(1, keepdim=True) / length
    return torch.addcmul(gradient, x, along / length, value=-1).div_(length)


def nz(x: Tensor) -> Tensor:
    """Flatten each sample and divide it by its L2 norm; one no longer than 1e-12 becomes zero.

    Args:
        x (Tensor): (N, ...), in float32 or wider.

    Returns:
        Tensor: (N, all the rest), rows of length 1 or 0, see :func:`unit_vectors`.
    """
    return unit_vectors(x.flatten(1), eps=1e-12)


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices, else raise naming the argument and them.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}')
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
