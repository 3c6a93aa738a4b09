"""Losses whose gradient is computed along with their value, in one pass over the maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import with_gradient
from mmkd_plugin.losses.numerics.pieces import KEPT, PIECE, Piece, each_piece
from mmkd_plugin.losses.numerics.precision import common_type, full_precision, no_autocast
from mmkd_plugin.tracing import is_compiling

#: The part of a loss that comes from a piece of the maps. It takes the pieces of student, teacher
#: and whatever else there is, and ``slope``: a tensor in the form of the student's piece to write
#: the gradient to, or None if nobody wants it.
Kernel = Callable[..., Tensor]
Slope = Tensor | None

#: The C library returns blocks of at least this many bytes to the system when they are freed.
HUGE = 2**25


def one_pass(
    kernel: Kernel, student: Tensor, teacher: Tensor, *others: Tensor, dim: int = 1
) -> Tensor:
    """A loss that is a sum over pieces of the maps, its gradient computed along with it.

    The gradient is the only map that is made, and the only thing saved for the backward pass. All
    else is as small as a piece: on a CPU, getting the memory of further maps would take longer
    than all the arithmetic.

    Args:
        kernel (Callable): Takes pieces and ``slope``, see :data:`Kernel`.
        student (Tensor): Map of the student, (N, ...), of any floating-point type.
        teacher (Tensor): Map of the teacher, the same shape. It gets no gradient.
        others (Tensor): Further tensors to cut into the same pieces, with as many dimensions.
        dim (int): Where to cut a sample that is too large for the cache. Defaults to 1.

    Returns:
        Tensor: A scalar in float32 or wider, the type in which the kernel gets the maps. It can be
        differentiated once.
    """
    others = teacher.detach(), *others
    if not (student.requires_grad and torch.is_grad_enabled()):
        return over_pieces(kernel, student, *others, dim=dim).sum()

    def compute(student: Tensor) -> tuple[Tensor, Tensor]:
        slope = empty_map(student, common_type(student, teacher))
        return over_pieces(kernel, student, *others, dim=dim, slope=slope).sum(), slope

    return with_gradient(compute, student)


def one_pass_by_samples(
    compute: Callable[..., tuple[Tensor, Tensor]],
    student: Tensor,
    teacher: Tensor,
    *others: Tensor,
) -> Tensor:
    """As :func:`one_pass`, for losses that need whole samples, and whose gradient is a formula.

    Args:
        compute (Callable): Takes some samples of both maps and of ``others``; returns the part of
            the loss that comes from them, and its gradient with respect to the student.
        student (Tensor): Map of the student, (N, ...), of any floating-point type.
        teacher (Tensor): Map of the teacher, (N, ...). It gets no gradient.
        others (Tensor): Further tensors of the samples, (N, ...).

    Returns:
        Tensor: A scalar in float32 or wider.
    """

    def kernel(s: Tensor, t: Tensor, *others: Tensor, slope: Slope) -> Tensor:
        value, gradient = compute(s, t, *others)
        if slope is not None:
            slope.copy_(gradient)
        return value

    if student.device.type != 'cpu' or is_compiling() or len(student) == 1:  # nothing to cut
        with full_precision(student, teacher) as (s, t):
            return with_gradient(lambda s: compute(s, t, *others), s)
    return one_pass(kernel, student, teacher, *others, dim=student.dim())


def by_autograd(formula: Callable[..., Tensor]) -> Kernel:
    """A kernel from a formula: autograd takes the gradient, of one piece at a time.

    What the formula makes on its way is as small as a piece, so a CPU's cache holds it.

    Args:
        formula (Callable): Takes pieces of student, teacher and whatever else there is; returns
            the part of the loss that comes from them.
    """

    def kernel(s: Tensor, t: Tensor, *others: Tensor, slope: Slope) -> Tensor:
        if slope is None:
            return formula(s, t, *others)
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            value = formula(leaf, t, *others)
        slope.copy_(torch.autograd.grad(value, leaf)[0])
        return value.detach()

    return kernel


def through_sums(
    sums: Callable[..., Tensor],
    finish: Callable[[Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    *others: Tensor,
    slope_of_sums: Callable[..., Tensor] | None = None,
) -> Tensor:
    """``finish(sums(student, teacher, *others))``, in two passes over pieces of the maps.

    The first adds the sums up. The second takes the gradient, piece by piece: what a sum is worth
    is known then. Until then, the memory for the gradient of a small map holds what both need.

    Args:
        sums (Callable): Takes pieces; returns for each of their samples sums over the positions,
            (n, ...). The pieces of a sample are cut along the positions, and their sums added up.
        finish (Callable): Takes the sums of all samples, (N, ...); returns the loss.
        student (Tensor): Map of the student, (N, C, L), of any floating-point type.
        teacher (Tensor): Map of the teacher, the same shape. It gets no gradient.
        others (Tensor): Further tensors to cut into the same pieces.
        slope_of_sums (Callable, optional): Takes the worth of each of the sums, pieces, and
            ``held``; returns the gradient of ``(worth * sums).sum()``. ``sums`` takes ``held`` too,
            memory in the form of the student's piece, or None. With it, it returns its sums and
            what ``slope_of_sums`` gets as ``held`` in place of pieces; that writes the gradient
            into the memory. Defaults to None: by autograd.

    Returns:
        Tensor: A scalar in float32 or wider. It can be differentiated once.
    """
    dtype = common_type(student, teacher)

    def cut(piece: Piece) -> tuple[Tensor, ...]:
        return tuple(x[piece].to(dtype) for x in (student.detach(), teacher.detach())) + tuple(
            x[piece] for x in others
        )

    left: dict[str, Any] = {}

    def first(piece: Piece) -> tuple[Piece, Tensor]:
        if slope_of_sums is None:
            return piece, sums(*cut(piece))
        if not holds:
            return piece, sums(*cut(piece), held=None)
        found, left[str(piece)] = sums(*cut(piece), held=slope[piece])
        return piece, found

    def compute(_: Tensor) -> tuple[Tensor, Tensor | None]:
        found = each_piece(first, student, dim=2)
        total = found[0][1].new_zeros(len(student), *found[0][1].shape[1:])
        for piece, part in found:
            total[piece[0]] += part
        with torch.enable_grad():
            value = finish(total.requires_grad_())
        if slope is None:
            return value.detach(), None
        (worth,) = torch.autograd.grad(value, total)

        def second(piece: Piece) -> None:
            if holds and slope_of_sums is not None:
                slope_of_sums(worth[piece[0]], *cut(piece), held=left[str(piece)])
                return
            s, *rest = cut(piece)
            if slope_of_sums is not None:
                slope[piece] = slope_of_sums(worth[piece[0]], s, *rest, held=None)
                return
            with torch.enable_grad():
                part = (sums(s.requires_grad_(), *rest) * worth[piece[0]]).sum()
            slope[piece] = torch.autograd.grad(part, s)[0]

        each_piece(second, student, dim=2)
        return value.detach(), slope

    wanted = student.requires_grad and torch.is_grad_enabled()
    slope = empty_map(student, dtype) if wanted else None
    holds = wanted and student.numel() <= KEPT  # a large map would be fetched from memory again
    with no_autocast(student.device.type):
        if wanted:
            return with_gradient(compute, student)
        with torch.no_grad():
            return compute(student)[0]


def empty_map(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``torch.empty_like``, on a CPU in the huge pages that NumPy asks Linux for.

    In pages of 4 KiB, as torch gets them, touching a large map for the first time takes several
    times as long as writing it. (In a virtual machine whose host hands memory out anew, some calls
    take three times as long instead: the mean is about the same, the median is lower.)

    Args:
        x (Tensor): The map to imitate.
        dtype (torch.dtype): Its type.
    """
    size = x.numel() * torch.finfo(dtype).bits // 8
    if x.device.type != 'cpu' or is_compiling() or size < HUGE:
        return torch.empty_like(x, dtype=dtype)
    form = torch.empty_like(x, dtype=dtype, device='meta')
    memory = np.empty(form.numel() * form.element_size(), np.uint8)
    return torch.from_numpy(memory).view(dtype).as_strided(form.shape, form.stride())


def over_pieces(
    kernel: Kernel,
    student: Tensor,
    teacher: Tensor,
    *others: Tensor,
    dim: int = 1,
    slope: Slope = None,
) -> Tensor:
    """The values of ``kernel`` for all pieces of the maps, without a graph, see :func:`one_pass`.

    Args:
        kernel (Callable): See :func:`one_pass`.
        student (Tensor): Map of the student.
        teacher (Tensor): Map of the teacher.
        others (Tensor): Further tensors to cut into the same pieces.
        dim (int): Where to cut a sample. Defaults to 1.
        slope (Tensor, optional): The map that the kernel writes the gradient to. Defaults to None.

    Returns:
        Tensor: One value for each piece.
    """
    dtype = common_type(student, teacher)

    def work(piece: Piece) -> Tensor:
        return kernel(
            student[piece].to(dtype),
            teacher[piece].to(dtype),
            *(x[piece] for x in others),
            slope=None if slope is None else slope[piece],
        )

    with torch.no_grad(), no_autocast(student.device.type):
        if 0 < student.numel() <= PIECE and not is_compiling():  # cutting takes as long as the rest
            return kernel(student.to(dtype), teacher.to(dtype), *others, slope=slope).view(1)
        values = each_piece(work, student, dim)
        return torch.stack(values) if values else student.new_zeros(0, dtype=dtype)
