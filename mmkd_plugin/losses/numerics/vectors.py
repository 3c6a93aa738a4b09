"""Geometry of vectors: lengths, directions, and how far two Gram matrices are apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.precision import widest


def gram_gap(s: Tensor, t: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """``||s^T s - t^T t||_F^2 / count``, summed over the batch, without the larger Gram matrices.

    With ``D = s^T s - t^T t``, its gradient is ``4 s D / count``. Where there are more columns than
    rows, the n x n matrices are never built. Their stand-ins must not subtract large sums of
    float32, or the loss drowns in rounding once the student is close to the teacher:

    - equal numbers of rows: with ``d = s - t``, ``D = d^T s + s^T d - d^T d``, so that with
      ``p = s + t`` the sum is ``(<d d^T, p p^T> + <d p^T, p d^T>) / 2``, and the gradient
      ``4 (s s^T - s d^T) d + 4 (s d^T) s``. Every term shrinks with ``d``;
    - other numbers: ``||s s^T||^2 - 2 ||s t^T||^2 + ||t t^T||^2``, added up in float64, and
      ``4 (s s^T) s - 4 (s t^T) t``.

    Args:
        s (Tensor): The student's matrices, (N, C_s, n).
        t (Tensor): The teacher's matrices, (N, C_t, n).
        count (int): The divisor that makes a mean of the sum. Defaults to 1.

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


def unit_vectors(x: Tensor, detach_norm: bool = False, eps: float = 1e-8, dim: int = 1) -> Tensor:
    """Divide vectors by their L2 norms, such as those of the channels at each position.

    A vector no longer than ``eps`` has no direction: it becomes zero (cosine 0 with all others)
    and gets no gradient. Dividing by ``max(norm, eps)`` gives it the same value, but a gradient of
    1e8, which float16 turns into infinity.

    Args:
        x (Tensor): (N, C, ...), in float32 or wider.
        detach_norm (bool): Treat the norm as a constant in the gradient. Defaults to False.
        eps (float): See above. Defaults to 1e-8.
        dim (int): The dimension that the vectors lie along. Defaults to 1.

    Returns:
        Tensor: Vectors of length 1 or 0, the shape of the input.
    """
    squares = (x.detach() if detach_norm else x).square().sum(dim, keepdim=True)
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


def distances_to_zero(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """The L2 norms along dimensions, which go; a vector of zeros gets no gradient, not NaN."""
    squares = x.square().sum(dim)
    zero = squares == 0
    return squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def lengths_of_samples(x: Tensor, eps: float = 1e-12) -> Tensor:
    """The L2 norm of each sample, (N, 1, ..., 1); infinite where no larger than ``eps``."""
    return lengths(x.flatten(1), eps).view(-1, *[1] * (x.dim() - 1))


def through_lengths(gradient: Tensor, x: Tensor, length: Tensor) -> Tensor:
    """From the gradient ``g`` of ``u = x / |x|`` that of ``x``: ``(g - u (u . g)) / |x|``.

    Args:
        gradient (Tensor): ``g``, (N, C, ...).
        x (Tensor): (N, C, ...).
        length (Tensor): The :func:`lengths` of ``x``.

    Returns:
        Tensor: The gradient with respect to ``x``.
    """
    along = (x * gradient).sum(1, keepdim=True) / length
    return torch.addcmul(gradient, x, along / length, value=-1).div_(length)


def unit_samples(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Flatten each sample and divide it by its L2 norm.

    Args:
        x (Tensor): (N, ...), in float32 or wider.
        eps (float): A sample no longer than this becomes zero. Defaults to 1e-12.

    Returns:
        Tensor: (N, all the rest), rows of length 1 or 0, see :func:`unit_vectors`.
    """
    return unit_vectors(x.flatten(1), eps=eps)
