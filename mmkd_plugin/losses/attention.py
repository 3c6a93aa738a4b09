"""Attention transfer (AT)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import attention as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    one_of,
    positive_number,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_samples
from mmkd_plugin.registry import MODELS

EPS = 1e-12
NORMS = ('mse', 'l2')


@with_fast_form(fast.attention)
def attention(student: Tensor, teacher: Tensor, p: float = 2, norm: str = 'mse') -> Tensor:
    """``mean over N*H*W of (A(student) - A(teacher))^2``, see :func:`attention_map`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        p (float): Power of the absolute values. Defaults to 2.
        norm (str): See :class:`AttentionLoss`. Defaults to ``'mse'``.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    with full_precision(student, teacher) as (s, t):
        return fast.map_gap(attention_map(s, p), attention_map(t, p), norm)


def attention_map(x: Tensor, p: float = 2) -> Tensor:
    """``A(x) = e / ||e||`` with the energy ``e = sum over C of abs(x)^p`` of each position.

    An all-zero sample stays zero and gets no gradient.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        p (float): Power of the absolute values. Defaults to 2.

    Returns:
        Tensor: (N, H*W), a vector of unit length for each sample.
    """
    # A does not depend on the scale of a sample. With a largest entry of 1, no power overflows.
    peak = x.detach().abs().amax((1, 2, 3), keepdim=True)
    x = (x / peak.clamp(min=EPS)).abs()
    if p >= 1:
        return unit_samples(x.pow(p).sum(1))
    zero = x == 0  # the slope there is infinite; it is taken to be 0
    powers = x.masked_fill(zero, 1).pow(p).masked_fill(zero, 0)
    return unit_samples(powers.sum(1))


@MODELS.register_module()
class AttentionLoss(nn.Module):
    """Match where the activations are strong, whatever the channels mean (AT).

    ``A(x)`` is the mean over C of ``abs(x)^p``, a map of the energy at each position, flattened and
    divided by its L2 norm per sample; the loss is ``mean over N*H*W of (A(S) - A(T))^2``.

    Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
    via Attention Transfer, ICLR 2017.

    - paper: https://arxiv.org/abs/1612.03928
    - code: https://github.com/szagoruyko/attention-transfer

    Args:
        p (float): Power of the absolute values; a higher one stresses the peaks. Defaults to 2.
        norm (str): How two maps A are compared. ``'mse'``: as above, the authors' code; ``'l2'``:
            ``mean over N of ||A(S) - A(T)||``, equation 2 of the paper. Defaults to ``'mse'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1e3 on each of three stages, CIRKD 1e4 on the last feature. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``p`` is not above 0, if ``norm`` is unknown or, in ``forward``, if shapes do
            not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import AttentionLoss
        >>> criterion = AttentionLoss(loss_weight=1e3)
        >>> student = [torch.randn(2, 64, 8, 8, requires_grad=True) for _ in range(3)]
        >>> teacher = [torch.randn(2, 256, 8, 8) for _ in range(3)]
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student[0].grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True
    auto_share: ClassVar[float] = 0.5  # more does harm: docs/results.md, the trials

    def __init__(self, p: float = 2, norm: str = 'mse', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.p = positive_number('p', p)
        self.norm = one_of('norm', norm, NORMS)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single position holds all of the energy."""
        if size is None or math.prod(size) > 1:
            return None
        return 'a single position always holds all of the energy; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(attention, p=self.p, norm=self.norm)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'p={self.p}, norm={self.norm}, loss_weight={self.loss_weight}'
