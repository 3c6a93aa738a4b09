"""Neuron selectivity transfer (NST)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.functional import (
    Maps,
    Weight,
    at_least_zero,
    check_shapes,
    full_precision,
    gram_gap,
    loss_weights,
    nz,
    one_of,
    pool_to_common_size,
    sum_over_maps,
    widest,
)
from mmkd_plugin.registry import MODELS

KERNELS = ('polynomial', 'linear', 'gaussian')

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
    compare = dict(polynomial=polynomial_mmd, linear=linear_mmd, gaussian=gaussian_mmd)[kernel]
    with full_precision(student, teacher) as (s, t):
        s, t = map(patterns, pool_to_common_size(s, t))
        return compare(s, t) / max(len(s), 1)


def patterns(x: Tensor) -> Tensor:
    """Where each channel is active: a vector of length 1, or of zeros if the channel is all zero.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.

    Returns:
        Tensor: (N, C, H*W).
    """
    return nz(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def polynomial_mmd(s: Tensor, t: Tensor) -> Tensor:
    """Squared MMD with ``k(a, b) = (a . b)^2``, summed over the batch.

    The mean of ``k`` over all pairs of rows of ``S`` and ``T`` is ``<S^T S / C_s, T^T T / C_t>``, a
    product of matrices, so the three terms together are the squared distance of two of these.

    Args:
        s (Tensor): Patterns of the student, (N, C_s, n).
        t (Tensor): Patterns of the teacher, (N, C_t, n).

    Returns:
        Tensor: A scalar.
    """
    return gram_gap(s / s.shape[1] ** 0.5, t / t.shape[1] ** 0.5)


def linear_mmd(s: Tensor, t: Tensor) -> Tensor:
    """Squared MMD with ``k(a, b) = a . b``: the squared distance of the means, as above."""
    return (s.mean(1) - t.mean(1)).square().sum()


def gaussian_mmd(s: Tensor, t: Tensor) -> Tensor:
    """Squared MMD with ``k(a, b) = exp(-||a - b||^2 / (2 sigma^2))``, as above.

    ``sigma^2`` is the mean of ``||a - b||^2`` over the pairs of one row of the student and one of
    the teacher, a number per sample.
    """
    # Distances do not depend on the origin. With it amid the rows, no digits are lost where these
    # are close to each other.
    centre = (s.detach().mean(1, keepdim=True) + t.mean(1, keepdim=True)) / 2
    s, t = s - centre, t - centre
    between = squared_distances(s, t)
    # Rows that differ by hardly more than their rounding count as equal.
    floor = ROUNDING * torch.finfo(s.dtype).eps
    variance = between.mean((1, 2), keepdim=True).clamp(min=floor)
    ss, st, tt = (
        (distances / (-2 * variance)).exp().mean((1, 2), dtype=widest(s))
        for distances in (squared_distances(s, s), between, squared_distances(t, t))
    )
    return at_least_zero((ss - 2 * st + tt).sum().to(s.dtype))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``||a_i - b_j||^2`` for all pairs of rows: (N, C_a, n) and (N, C_b, n) to (N, C_a, C_b)."""
    lengths = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :]
    return torch.baddbmm(lengths, a, b.mT, alpha=-2)


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
