"""Hint learning (FitNets) in one pass over the maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.precision import common_type


def hint(student: Tensor, teacher: Tensor, region: Tensor | None = None) -> Tensor:
    """See :func:`mmkd_plugin.losses.hint.hint`."""
    check_shapes(student, teacher, ndims=(2, 4))
    if region is not None:
        weights = shares(region, student).to(common_type(student, teacher))
        flat = (x.flatten(2) for x in (student, teacher, weights))
        return one_pass(_weighted_squares, *flat, dim=2)
    count = max(student.numel(), 1)
    return one_pass(partial(_squares, count), student, teacher)


def shares(region: Tensor, x: Tensor) -> Tensor:
    """What an element counts for a mean over the positions of a region, (N, 1, H, W).

    Args:
        region (Tensor): Booleans, (N, 1, H, W).
        x (Tensor): A map, (N, C, H, W); its channels and its type are read.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return region / (region.sum() * x.shape[1]).clamp(min=1).to(dtype)


def _squares(count: int, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    gap = torch.sub(s, t, out=slope)
    value = torch.mul(gap, gap, out=scratch(gap)).sum() / count
    gap.mul_(2 / count)
    return value


def _weighted_squares(s: Tensor, t: Tensor, weights: Tensor, slope: Slope) -> Tensor:
    gap = torch.sub(s, t, out=slope)
    value = (torch.mul(gap, gap, out=scratch(gap)).sum(1, keepdim=True) * weights).sum()
    gap.mul_(2 * weights)
    return value
