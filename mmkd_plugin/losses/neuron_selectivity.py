"""Neuron selectivity transfer (NST)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import neuron_selectivity as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.pooling import pool_to_common_size
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS

KERNELS = ('polynomial', 'linear', 'gaussian')


# traced too: where there are more channels than positions, the matrices of all pairs are large
@with_fast_form(fast.neuron_selectivity, traced=True)
def neuron_selectivity(student: Tensor, teacher: Tensor, kernel: str = 'polynomial') -> Tensor:
    """Squared maximum mean discrepancy (MMD) of the channels' patterns, mean over the samples.

    Args:
        student (Tensor): Map of the student, (N, C_s, H_s, W_s).
        teacher (Tensor): Map of the teacher, (N, C_t, H_t, W_t). It gets no gradient.
        kernel (str): See :class:`NeuronSelectivityLoss`. Defaults to ``'polynomial'``.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False, same_size=False)
    with full_precision(student, teacher) as (s, t):
        s, t = (patterns(x) for x in pool_to_common_size(s, t))
        if kernel == 'gaussian':
            ss, st, tt = gaussian_kernels(s, t)
        else:
            power = dict(linear=1, polynomial=2)[kernel]
            ss, st, tt = ((a @ b.mT).pow(power) for a, b in ((s, s), (s, t), (t, t)))
        mmd = tt.mean((1, 2)) + ss.mean((1, 2)) - 2 * st.mean((1, 2))
        return mmd.sum() / max(len(mmd), 1)


def patterns(x: Tensor) -> Tensor:
    """Where each channel is active: a vector of length 1, or of zeros if the channel is all zero.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.

    Returns:
        Tensor: (N, C, H*W).
    """
    return unit_vectors(x.flatten(2).flatten(0, 1), eps=1e-12).unflatten(0, x.shape[:2])


def gaussian_kernels(s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """``exp(-||a - b||^2 / (2 sigma^2))`` for all pairs of two students, of both, of two teachers.

    ``sigma^2`` is the mean of ``||s - t||^2`` over all pairs of the image. It never falls below
    the rounding of the patterns, so that equal ones have a kernel of 1.

    Args:
        s (Tensor): Patterns of the student, (N, C_s, n).
        t (Tensor): Patterns of the teacher, (N, C_t, n).

    Returns:
        tuple[Tensor, ...]: (N, C_s, C_s), (N, C_s, C_t), (N, C_t, C_t).
    """
    ss, st, tt = (
        a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * a @ b.mT
        for a, b in ((s, s), (s, t), (t, t))
    )
    variance = st.mean((1, 2), keepdim=True).clamp(min=fast.least_variance(s.dtype))
    return tuple((-squares / (2 * variance)).exp() for squares in (ss, st, tt))


@MODELS.register_module()
class NeuronSelectivityLoss(nn.Module):
    """Match the distribution of the patterns of the channels (NST).

    Each channel, flattened over its positions and brought to unit L2 norm, is a sample: it shows
    where a neuron of the layer responds. The loss is the squared maximum mean discrepancy of the
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
            gradient. Defaults to ``'polynomial'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            50 with the polynomial kernel. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H_s, W_s), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H_t, W_t). Channel counts and sizes may differ: the larger map is
          adaptively average-pooled, to the lesser height and the lesser width.
        - output: a scalar, never below 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such kernel or, in ``forward``, if shapes do not fit.

    Examples:
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

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = False
    auto_share: ClassVar[float] = 0.5  # more does harm: docs/results.md, the trials

    def __init__(self, kernel: str = 'polynomial', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.kernel = one_of('kernel', kernel, KERNELS)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: all channels have the same single position."""
        if size is None or math.prod(size) > 1:
            return None
        return 'all channels are selective to the single position of these maps; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(neuron_selectivity, kernel=self.kernel)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'kernel={self.kernel}, loss_weight={self.loss_weight}'
