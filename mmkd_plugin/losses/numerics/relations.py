"""Matrices of all pairs of vectors, a few rows at a time, with the gradient by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import with_gradient
from mmkd_plugin.losses.numerics.divergence import categorical
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.precision import common_type, full_precision
from mmkd_plugin.losses.numerics.vectors import lengths, through_lengths

#: Entries of the rows that are held at once: 4 MB in float32.
ROOM = 2**20

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
    """``sum of KL(softmax(b / tau) || softmax(a / tau)) / count``, and its gradient in place of a.

    Args:
        a (Tensor): The student's cosines, (B, r, M).
        b (Tensor): The teacher's, the same shape.
        tau (float): Temperature.
        columns (int): How many columns share a softmax; M is a multiple of it.
        count (int): The divisor that makes a mean of the sum.
    """
    a, b = (x.unflatten(2, (-1, columns)) for x in (a, b))
    value = categorical(a, b, 1 / count, tau, dim=3, slope=a)
    return value, a.flatten(2)


def memory_contrast(
    student: Tensor, teacher: Tensor, memories: Sequence[Tensor], kept: Tensor, tau: float
) -> Tensor:
    """See :func:`mmkd_plugin.losses.memory_contrast.memory_contrast`."""
    weight = (kept.to(common_type(student, teacher)) / kept.sum().clamp(min=1))[:, None]
    compare = partial(_against_memories, memories, tau)
    return one_pass(compare, student, teacher, weight, dim=2)


def _against_memories(
    memories: Sequence[Tensor], tau: float, s: Tensor, t: Tensor, weight: Tensor, slope: Slope
) -> Tensor:
    step = max(ROOM // max(len(s) * max(map(len, memories)), 1), 1)
    value = s.new_zeros(())
    for start in range(0, s.shape[2], step):
        part = (slice(None), slice(None), slice(start, start + step))
        length, gradient = lengths(s[part]), 0
        ours, theirs = (s[part] / length).mT, (t[part] / lengths(t[part])).mT
        for rows in memories:
            rows = rows.to(s.dtype)
            a, b = ours @ rows.mT, theirs @ rows.mT
            factor = weight[part].mT
            value += categorical(a, b, factor, tau, dim=2, slope=None if slope is None else a)
            gradient = gradient if slope is None else gradient + a @ rows
        if slope is not None:
            slope[part] = through_lengths(gradient.mT, s[part], length)
    return value
