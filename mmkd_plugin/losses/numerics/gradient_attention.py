"""Gradient-based attention transfer in two passes over the gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass, over_pieces
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.precision import common_type


def gradient_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.gradient_attention.gradient_attention`."""
    check_shapes(student, teacher, ndims=(2, 4))
    if not len(student):
        return student.sum(dtype=common_type(student, teacher))
    # With a largest entry of 1, no square of it can vanish.
    peak = over_pieces(_largest, student, teacher).amax()
    tiny = torch.finfo(peak.dtype).tiny
    peak = peak.clamp(min=tiny)
    squares = one_pass(partial(_squares, peak), student, teacher)
    return peak * squares.clamp(min=tiny).sqrt() * (squares > 0)


def _largest(s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    return torch.sub(s, t, out=scratch(s)).abs_().amax()


def _squares(peak: Tensor, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    gap = torch.sub(s, t, out=slope).div_(peak)
    value = torch.mul(gap, gap, out=scratch(gap)).sum()
    gap.mul_(2 / peak)
    return value
