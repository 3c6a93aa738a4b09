"""Hint learning (FitNets) in one pass over the maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.hint.hint`."""
    check_shapes(student, teacher, ndims=(2, 4))
    count = max(student.numel(), 1)
    return one_pass(partial(_squares, count), student, teacher)


def _squares(count: int, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    gap = torch.sub(s, t, out=slope)
    value = torch.mul(gap, gap, out=scratch(gap)).sum() / count
    gap.mul_(2 / count)
    return value
