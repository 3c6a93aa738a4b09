"""Attention transfer (AT) that keeps nothing but the maps themselves for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import refuse_second_derivative
from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import empty_map
from mmkd_plugin.losses.numerics.pieces import Piece, each_piece, scratch
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.losses.numerics.vectors import distances_to_zero, unit_samples

EPS = 1e-12


def attention(student: Tensor, teacher: Tensor, p: float = 2, norm: str = 'mse') -> Tensor:
    """See :func:`mmkd_plugin.losses.attention.attention`."""
    check_shapes(student, teacher, same_channels=False)
    with no_autocast(student.device.type):
        of_student, of_teacher = (
            unit_samples(EnergyMap.apply(x, p)) for x in (student, teacher.detach())
        )
        return map_gap(of_student, of_teacher, norm)


def map_gap(student: Tensor, teacher: Tensor, norm: str) -> Tensor:
    """Of two maps of energies, (N, n): the mean of the squares, or of the lengths of samples."""
    gap = student - teacher
    if norm == 'l2':
        return distances_to_zero(gap).sum() / max(len(gap), 1)
    return gap.square().sum() / max(gap.numel(), 1)


class EnergyMap(torch.autograd.Function):
    """``sum over C of abs(x)^p``, (N, C, H, W) to (N, H, W), in units of its own for each sample.

    What was an entry of the largest magnitude in its sample counts as 1. So no power can overflow,
    and the map of a small sample cannot vanish.

    It saves the map itself: powers of it would be as large, and are cheap to compute again.
    """

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


def _peaks(x: Tensor) -> Tensor:
    whole = (1, 2, 3)
    return torch.maximum(x.amax(whole, True), -x.amin(whole, True)).clamp(min=EPS)


def _power(x: Tensor, p: float) -> Tensor:
    if p >= 1:
        return x.abs().pow(p)
    zero = x == 0
    return x.abs().masked_fill(zero, 1).pow(p).masked_fill(zero, 0)
