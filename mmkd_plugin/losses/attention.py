"""Attention transfer (AT)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.functional import (
    Maps,
    Weight,
    check_shapes,
    full_precision,
    loss_weights,
    nz,
    positive_number,
    sum_over_maps,
)
from mmkd_plugin.registry import MODELS

EPS = 1e-12


def attention(student: Tensor, teacher: Tensor, p: float = 2) -> Tensor:
    """``mean over N*H*W of (A(student) - A(teacher))^2``, see :func:`attention_map`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        p (float): Power of the absolute values. Default: 2.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    with full_precision(student, teacher) as (s, t):
        gap = attention_map(s, p) - attention_map(t, p)
        return gap.square().sum() / max(gap.numel(), 1)


def attention_map(x: Tensor, p: float = 2) -> Tensor:
    """``A(x) = nz(mean over C of abs(x)^p)``: per sample, a vector of unit length.

    An all-zero sample stays zero and gets no gradient.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        p (float): Power of the absolute values. Default: 2.

    Returns:
        Tensor: (N, H*W).
    """
    # nz cancels any factor of a sample, so each is scaled to a largest entry of 1, for free in
    # the gradient: no power of it can overflow then, and its norm cannot vanish.
    peak = torch.linalg.vector_norm(x.detach(), math.inf, dim=(1, 2, 3), keepdim=True)
    x = x / peak.clamp(min=EPS)
    if p == 2:
        energy = x.square()
    elif p >= 1:
        energy = x.abs().pow(p)
    else:  # the slope at 0 is infinite; it is taken to be 0
        zero = x == 0
        energy = x.abs().masked_fill(zero, 1).pow(p).masked_fill(zero, 0)
    return nz(energy.mean(1))


@MODELS.register_module()
class AttentionLoss(nn.Module):
    """Match where the activations are strong, whatever the channels mean (AT).

    ``A(x) = nz(mean over C of abs(x)^p)`` is a map of the energy at each position, flattened and
    brought to unit L2 norm per sample; the loss is ``mean over N*H*W of (A(S) - A(T))^2``.

    Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
    via Attention Transfer, ICLR 2017.

    - paper: https://arxiv.org/abs/1612.03928
    - code: https://github.com/szagoruyko/attention-transfer

    Args:
        p (float): Power of the absolute values; higher stresses the peaks. Default: 2.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1e3 on each of three stages, CIRKD 1e4 on the last feature. Default: 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``p`` is not above 0 or, in ``forward``, if shapes do not fit.

    Example:
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

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True

    def __init__(self, p: float = 2, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.p = positive_number('p', p)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(attention, p=self.p)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'p={self.p}, loss_weight={self.loss_weight}'
