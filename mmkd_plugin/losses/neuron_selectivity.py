"""Neuron selectivity transfer (NST)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import one_pass_by_samples
from mmkd_plugin.losses.numerics.pooling import pool_to_common_size
from mmkd_plugin.losses.numerics.precision import full_precision, widest
from mmkd_plugin.losses.numerics.vectors import gram_gap, lengths, through_lengths
from mmkd_plugin.registry import MODELS

KERNELS = ('polynomial', 'linear', 'gaussian')
#: A channel no longer than this is all zero.
EPS = 1e-12

# The least sigma^2 of the gaussian kernel, in units of the rounding of numbers near 1: the rounding
# of a pattern then has a gradient of about a hundredth. In float32, angles of 0.003 are this small.
ROUNDING = 64


def neuron_selectivity(student: Tensor, teacher: Tensor, kernel: str = 'polynomial') -> Tensor:
    """Squared maximum mean discrepancy (MMD) of the channels' patterns, mean over the samples.

    Args:
        student (Tensor): Map of the student, (N, C_s, H_s, W_s).
        teacher (Tensor): Map of the teacher, (N, C_t, H_t, W_t). It gets no gradient.
        kernel (str): See :class:`NeuronSelectivityLoss`. Default: ``'polynomial'``.

    Returns:
        Tensor: A scalar, never below 0.
    """
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
            returns what this function does, with the gradient with respect to the former.
        count (int): What makes a mean of the sum.

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
        count (int): What makes a mean of the sum.

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
    floor = ROUNDING * torch.finfo(s.dtype).eps
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


def three_terms(ss: Tensor, st: Tensor, tt: Tensor) -> Tensor:
    """``mean ss - 2 mean st + mean tt`` of each sample, (N, 1, 1), in the widest type."""
    ss, st, tt = (x.mean((1, 2), keepdim=True, dtype=widest(x)) for x in (ss, st, tt))
    return ss - 2 * st + tt


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``||a_i - b_j||^2`` for all pairs of rows: (N, C_a, n) and (N, C_b, n) to (N, C_a, C_b)."""
    sums = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :]
    return torch.baddbmm(sums, a, b.mT, alpha=-2)


@MODELS.register_module()
class NeuronSelectivityLoss(nn.Module):
    """Match the distribution of the patterns that the channels respond with (NST).

    Each channel, flattened over its positions and brought to unit L2 norm, is a sample of what
    the neurons of a layer select. The loss is the squared maximum mean discrepancy of the
    student's samples s and the teacher's t, ``mean k(t, t') + mean k(s, s') - 2 * mean k(s, t)``
    with means over all pairs, averaged over the images. An all-zero channel is a sample at 0 and
    gets no gradient.

    The polynomial kernel never needs a matrix for all pairs of positions nor of channels, whichever
    is larger; the linear one needs none at all, the gaussian one those of the channels.

    Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017.

    - paper: https://arxiv.org/abs/1707.01219
    - code: https://github.com/TuSimple/neuron-selectivity-transfer (polynomial kernel)

    Args:
        kernel (str): ``'polynomial'``: ``k(a, b) = (a . b)^2``; ``'linear'``: ``a . b``;
            ``'gaussian'``: ``exp(-||a - b||^2 / (2 sigma^2))``, where ``sigma^2`` is the mean of
            ``||s - t||^2`` over all pairs of a student's and a teacher's channel of the image. It
            is the same in all three terms, so that they add up to a discrepancy, and part of the
            gradient. Default: ``'polynomial'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            50 with the polynomial kernel. Default: 1.0.

    Shape:
        - student: (N, C_s, H_s, W_s), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H_t, W_t). Channel counts and sizes may differ: the larger map is
          adaptively average-pooled, to the lesser height and the lesser width.
        - output: a scalar, never below 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such kernel or, in ``forward``, if shapes do not fit.

    Example:
        >>> import torch
        >>> from mmkd_plugin.losses import NeuronSelectivityLoss
        >>> criterion = NeuronSelectivityLoss(loss_weight=50)
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 8, 8)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 16, 16]))
    """

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = False

    def __init__(self, kernel: str = 'polynomial', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.kernel = one_of('kernel', kernel, KERNELS)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(neuron_selectivity, kernel=self.kernel)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'kernel={self.kernel}, loss_weight={self.loss_weight}'
