"""Matrices of all pairs of positions, a few rows at a time, with the gradient by formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import with_gradient
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import lengths, through_lengths

#: Entries of the rows that are held at once: 16 MB in float32.
ROOM = 2**22

#: A vector no longer than this has no direction.
EPS = 1e-12

#: Takes rows (B, r, M) of the student's and of the teacher's cosines; gives the part of the loss
#: that comes from them, and its gradient with respect to the former.
Compare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def over_rows(student: Tensor, teacher: Tensor, compare: Compare, across: bool = False) -> Tensor:
    """The sum of ``compare`` over the rows of all matrices of cosines.

    Args:
        student (Tensor): (N, C_s, n): n vectors of each image.
        teacher (Tensor): (N, C_t, n). It gets no gradient.
        compare (Callable): See :data:`Compare`.
        across (bool): Whether there is one matrix for the batch, (1, N*n, N*n), in the place of
            one for each image, (N, n, n). Defaults to False.

    Returns:
        Tensor: A scalar.
    """
    with full_precision(student, teacher) as (s, t):
        return with_gradient(lambda s: _stream(s, t, compare, across), s)


def _stream(s: Tensor, t: Tensor, compare: Compare, across: bool) -> tuple[Tensor, Tensor]:
    length = lengths(s, EPS)
    a, b = (rows_of(x / size, across) for x, size in ((s, length), (t, lengths(t, EPS))))
    batch, count, _ = a.shape
    step = max(ROOM // max(batch * count, 1), 1)
    value, gradient = s.new_zeros(()), torch.zeros_like(a)
    for start in range(0, count, step):
        part = slice(start, start + step)
        own, slope = compare(a[:, part] @ a.mT, b[:, part] @ b.mT)
        value = value + own
        gradient[:, part] += slope @ a
        gradient.baddbmm_(slope.mT, a[:, part])
    gradient = gradient.view(len(s), s.shape[2], s.shape[1]).mT
    return value, through_lengths(gradient, s, length)


def rows_of(x: Tensor, across: bool) -> Tensor:
    """The vectors (N, C, n) as rows, (N, n, C), or those of all images as (1, N*n, C)."""
    rows = x.mT.contiguous()
    return rows.flatten(0, 1)[None] if across else rows


def row_divergence(
    a: Tensor, b: Tensor, tau: float, columns: int, count: int
) -> tuple[Tensor, Tensor]:
    """``sum of KL(softmax(b / tau) || softmax(a / tau)) / count``, and its gradient.

    Args:
        a (Tensor): The student's cosines, (B, r, M).
        b (Tensor): The teacher's, the same shape.
        tau (float): Temperature.
        columns (int): How many columns share a softmax; M is a multiple of it.
        count (int): The divisor that makes a mean of the sum.
    """
    log_a, log_b = ((x / tau).unflatten(2, (-1, columns)).log_softmax(3) for x in (a, b))
    p = log_b.exp()
    value = (log_b - log_a).mul_(p).sum() / count
    return value, log_a.exp_().sub_(p).div_(tau * count).flatten(2)
