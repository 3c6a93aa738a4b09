"""Neuron selectivity transfer (NST) with its gradient by formula, and the smaller matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import one_pass_by_samples
from mmkd_plugin.losses.numerics.pooling import pool_to_common_size
from mmkd_plugin.losses.numerics.precision import full_precision, widest
from mmkd_plugin.losses.numerics.vectors import gram_gap, lengths, through_lengths

#: A channel no longer than this is all zero.
EPS = 1e-12

# The least sigma^2 of the gaussian kernel, in units of the rounding of numbers near 1: the rounding
# of a pattern then has a gradient of about a hundredth. In float32, angles of 0.003 are this small.
ROUNDING = 64


def neuron_selectivity(student: Tensor, teacher: Tensor, kernel: str = 'polynomial') -> Tensor:
    """See :func:`mmkd_plugin.losses.neuron_selectivity.neuron_selectivity`."""
    check_shapes(student, teacher, same_channels=False, same_size=False)
    mmd = dict(polynomial=polynomial_mmd, linear=linear_mmd, gaussian=gaussian_mmd)[kernel]
    with full_precision(student, teacher) as (s, t):
        s, t = (x.flatten(2) for x in pool_to_common_size(s, t))
        return one_pass_by_samples(partial(pattern_gap, mmd=mmd, count=max(len(s), 1)), s, t)


def pattern_gap(
    s: Tensor,
    t: Tensor,
    mmd: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    count: int,
) -> tuple[Tensor, Tensor]:
    """The sum over the samples of a discrepancy of patterns, over ``count``, and its gradient.

    Args:
        s (Tensor): The student's channels, (N, C_s, n), in float32 or wider.
        t (Tensor): The teacher's channels, (N, C_t, n).
        mmd (Callable): Takes the :func:`patterns` of both, which it may overwrite, and ``count``;
            returns the same as this function, with the gradient with respect to the former.
        count (int): The divisor that makes a mean of the sum.

    Returns:
        tuple[Tensor, Tensor]: A scalar, and its gradient with respect to ``s``.
    """
    value, gradient = mmd(patterns(s), patterns(t), count)
    rows = s.flatten(0, 1)
    return value, through_lengths(gradient.flatten(0, 1), rows, lengths(rows, EPS)).view_as(s)


def patterns(x: Tensor) -> Tensor:
    """Where each channel is active: a vector of length 1, or of zeros if the channel is all zero.

    Args:
        x (Tensor): (N, C, n) or (N, C, H, W), in float32 or wider.

    Returns:
        Tensor: (N, C, n).
    """
    rows = x.flatten(2).flatten(0, 1)
    return (rows / lengths(rows, EPS)).unflatten(0, x.shape[:2])


def polynomial_mmd(s: Tensor, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Squared MMD with ``k(a, b) = (a . b)^2``, summed over the samples, over ``count``.

    The mean of ``k`` over all pairs of rows of ``S`` and ``T`` is ``<S^T S / C_s, T^T T / C_t>``, a
    product of matrices, so the three terms together are the squared distance of two of these.

    Args:
        s (Tensor): Patterns of the student, (N, C_s, n).
        t (Tensor): Patterns of the teacher, (N, C_t, n).
        count (int): The divisor that makes a mean of the sum.

    Returns:
        tuple[Tensor, Tensor]: A scalar, and its gradient with respect to ``s``.
    """
    c_s, c_t = s.shape[1], t.shape[1]
    return gram_gap(s, t if c_s == c_t else t.mul_((c_s / c_t) ** 0.5), count * c_s**2)


def linear_mmd(s: Tensor, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As above, with ``k(a, b) = a . b``: the squared distance of the means."""
    gap = s.mean(1, keepdim=True) - t.mean(1, keepdim=True)
    return gap.square().sum() / count, (gap * 2 / (count * s.shape[1])).expand_as(s)


def gaussian_mmd(s: Tensor, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As above, with ``k(a, b) = exp(-||a - b||^2 / (2 sigma^2))``.

    ``sigma^2`` is the mean of ``||a - b||^2`` over the pairs of one row of the student and one of
    the teacher, a number per sample.

    With ``E = -||a - b||^2 / (2 sigma^2)``, the gradient is ``-k / (2 sigma^2)`` times its factor
    in the three terms with respect to each squared distance, and ``-1 / sigma^2`` times the same
    three terms of ``k E`` with respect to ``sigma^2``.
    """
    # Distances do not depend on the origin. With it amid the rows, no digits are lost where these
    # are close to each other.
    centre = (s.mean(1, keepdim=True) + t.mean(1, keepdim=True)) / 2
    s, t = s.sub_(centre), t.sub_(centre)
    squares = squared_distances(s, s), squared_distances(s, t), squared_distances(t, t)
    mean = squares[1].mean((1, 2), keepdim=True)
    # Rows that differ by hardly more than their rounding count as equal.
    floor = least_variance(s.dtype)
    variance = mean.clamp(min=floor)
    exponents = [x / (-2 * variance) for x in squares]
    kernels = [x.exp() for x in exponents]
    value = three_terms(*kernels).sum().clamp(min=0) / count
    of_variance = three_terms(*(k * e for k, e in zip(kernels, exponents))).to(s.dtype) / -variance
    of_variance = of_variance.masked_fill(mean < floor, 0)
    ss, st, _ = kernels
    of_ss = ss / (-2 * variance * count * ss.shape[1:].numel())
    of_st = (st / variance + of_variance) / (count * st.shape[1:].numel())
    # sum over j of 4 of_ss_ij (s_i - s_j) + 2 of_st_ij (s_i - t_j)
    to_itself = torch.diag_embed(4 * of_ss.sum(2) + 2 * of_st.sum(2)) - 4 * of_ss
    return value.to(s.dtype), to_itself @ s - (2 * of_st) @ t


def least_variance(dtype: torch.dtype) -> float:
    """The least ``sigma^2`` of the gaussian kernel."""
    return ROUNDING * torch.finfo(dtype).eps


def three_terms(ss: Tensor, st: Tensor, tt: Tensor) -> Tensor:
    """``mean ss - 2 mean st + mean tt`` of each sample, (N, 1, 1), in the widest type."""
    ss, st, tt = (x.mean((1, 2), keepdim=True, dtype=widest(x)) for x in (ss, st, tt))
    return ss - 2 * st + tt


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``||a_i - b_j||^2`` for all pairs of rows: (N, C_a, n) and (N, C_b, n) to (N, C_a, C_b)."""
    sums = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :]
    return torch.baddbmm(sums, a, b.mT, alpha=-2)
