"""Attention transfer (AT)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmkd_plugin.losses.functional import (
    Maps,
    Weight,
    check_shapes,
    common_type,
    loss_weights,
    no_autocast,
    nz,
    positive_number,
    sum_over_maps,
)
from mmkd_plugin.losses.one_pass import is_compiling, pieces
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
    with no_autocast(student.device.type):
        gap = attention_map(student, p) - attention_map(teacher.detach(), p)
        return gap.square().sum() / max(gap.numel(), 1)


def attention_map(x: Tensor, p: float = 2) -> Tensor:
    """``A(x) = nz(mean over C of abs(x)^p)``: per sample, a vector of unit length.

    An all-zero sample stays zero and gets no gradient.

    Args:
        x (Tensor): (N, C, H, W), of any floating-point type.
        p (float): Power of the absolute values. Default: 2.

    Returns:
        Tensor: (N, H*W), in float32 or wider.
    """
    # nz cancels any factor of a sample, so each is scaled to a largest entry of 1, for free in
    # the gradient: no power of it can overflow then, and its norm cannot vanish.
    whole, detached = (1, 2, 3), x.detach()
    peak = torch.maximum(detached.amax(whole), -detached.amin(whole)).to(common_type(x, x))
    return nz(mean_energy(x, 1 / peak.clamp(min=EPS).view(-1, 1, 1, 1), p))


def mean_energy(x: Tensor, scale: Tensor, p: float) -> Tensor:
    """``mean over C of abs(x * scale)^p``.

    Args:
        x (Tensor): (N, C, H, W), of any floating-point type.
        scale (Tensor): Factor of each sample, (N, 1, 1, 1), in float32 or wider, a constant.
        p (float): The power.

    Returns:
        Tensor: (N, H, W), in the type of ``scale``.
    """
    if is_compiling():
        return _power(x.to(scale.dtype) * scale, p).mean(1)
    return _MeanEnergy.apply(x, scale, p)


def _power(x: Tensor, p: float) -> Tensor:
    if p == 2:
        return x.square()
    if p >= 1:
        return x.abs().pow(p)
    zero = x == 0  # the slope there is infinite; it is taken to be 0
    return x.abs().masked_fill(zero, 1).pow(p).masked_fill(zero, 0)


class _MeanEnergy(torch.autograd.Function):
    """Saves the map itself and nothing else: its powers are as large, and cheap to compute again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.p = p
        energy = scale.new_empty(x[:, 0].shape)
        for piece in pieces(x, dim=2):
            n, rows = piece[0], piece[2:]
            energy[(n, *rows)] = _power(x[piece] * scale[n], p).mean(1)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (x, scale), p = ctx.saved_tensors, ctx.p
        slope = torch.empty_like(x)
        grad = grad[:, None] * scale * (p / x.shape[1])
        for piece in pieces(x, dim=2):
            y = x[piece] * scale[piece[0]]
            if p != 2:
                power = y.abs().pow_(p - 1)
                if p < 1:
                    power.masked_fill_(y == 0, 0)
                y = y.sign_().mul_(power)
            torch.mul(y, grad[piece], out=slope[piece])
        return slope, None, None


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
