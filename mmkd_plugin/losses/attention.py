"""Attention transfer (AT)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.autograd import refuse_second_derivative
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, positive_number
from mmkd_plugin.losses.numerics.compiling import is_compiling
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import empty_map
from mmkd_plugin.losses.numerics.pieces import Piece, each_piece, scratch
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.losses.numerics.vectors import nz
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
    return nz(energy_map(x, p))


def energy_map(x: Tensor, p: float) -> Tensor:
    """``sum over C of abs(x)^p``, in units of its own for each sample.

    What was an entry of the largest magnitude in its sample counts as 1. So no power can overflow,
    and the map of a small sample cannot vanish.

    Args:
        x (Tensor): (N, C, H, W), of any floating-point type.
        p (float): The power.

    Returns:
        Tensor: (N, H, W), in float32 or wider.
    """
    if not is_compiling():
        return _EnergyMap.apply(x, p)
    x = x.to(common_type(x, x))
    return _power(x / _peaks(x.detach()), p).sum(1)


def _peaks(x: Tensor) -> Tensor:
    whole = (1, 2, 3)
    return torch.maximum(x.amax(whole, True), -x.amin(whole, True)).clamp(min=EPS)


def _power(x: Tensor, p: float) -> Tensor:
    if p == 2:
        return x.square()
    if p >= 1:
        return x.abs().pow(p)
    zero = x == 0  # the slope there is infinite; it is taken to be 0
    return x.abs().masked_fill(zero, 1).pow(p).masked_fill(zero, 0)


class _EnergyMap(torch.autograd.Function):
    """It saves the map itself: powers of it would be as large, and are cheap to compute again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dtype = common_type(x, x)

        def work(piece: Piece) -> tuple[slice, Tensor, Tensor]:
            part = x[piece].to(dtype)
            peak = _peaks(part)
            part = torch.div(part, peak, out=scratch(part))
            return piece[0], peak, (part.square_() if p == 2 else _power(part, p)).sum(1)

        parts = each_piece(work, x, dim=1)
        peak = x.new_zeros((len(x), 1, 1, 1), dtype=dtype)
        energy = x.new_zeros(x[:, 0].shape, dtype=dtype)
        for samples, own, _ in parts:
            peak[samples] = torch.maximum(peak[samples], own)
        for samples, own, part in parts:  # in units of the piece until now
            energy[samples] += part * (own / peak[samples]).pow_(p)[:, 0]
        ctx.save_for_backward(x, peak)
        ctx.p = p
        return energy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        refuse_second_derivative()
        (x, peak), p = ctx.saved_tensors, ctx.p
        slope = empty_map(x, x.dtype)
        grad = grad[:, None] / peak * p

        def work(piece: Piece) -> None:
            part = x[piece]
            y = torch.div(part, peak[piece[0]], out=scratch(part, dtype=peak.dtype))
            if p != 2:
                power = y.abs().pow_(p - 1)
                if p < 1:
                    power.masked_fill_(y == 0, 0)
                y = y.sign_().mul_(power)
            torch.mul(y, grad[piece[0]], out=slope[piece])

        each_piece(work, x, dim=1)
        return slope, None


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
