"""Factor transfer (FT) in one pass over the factors."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.vectors import lengths_of_samples


def factor_transfer(student: Tensor, teacher: Tensor, p: int = 1) -> Tensor:
    """See :func:`mmkd_plugin.losses.factor_transfer.factor_transfer`."""
    check_shapes(student, teacher, ndims=(2, 4))
    count = max(student.numel(), 1)
    whole = student.dim()  # a sample stays in one piece
    return one_pass(partial(_factor_gap, count, p), student, teacher, dim=whole)


def _factor_gap(count: int, p: int, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    length = lengths_of_samples(s)
    unit = torch.div(s, length, out=slope)
    gap = unit - t / lengths_of_samples(t)
    pull = gap.sign() if p == 1 else gap * 2  # the slope of abs(gap)^p
    value = gap.mul_(pull).sum() / (count * p)
    if slope is not None:
        along = torch.mul(unit, pull, out=gap).flatten(1).sum(1).view_as(length)
        unit.mul_(-along).add_(pull).div_(length * count)
    return value
