"""Activation boundaries (AB) in one pass over the maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """See :func:`mmkd_plugin.losses.activation_boundary.activation_boundary`."""
    check_shapes(student, teacher, ndims=(2, 4))
    kernel = partial(_missing, margin=margin, count=max(len(student), 1))
    return one_pass(kernel, student, teacher)


def _missing(s: Tensor, t: Tensor, margin: float, count: int, slope: Slope) -> Tensor:
    # -1 where t > 0, else 1; torch.where is slow on a CPU
    away = torch.sign(t, out=scratch(t)).neg_().add_(0.5).sign_()
    missing = torch.mul(s, away, out=slope).add_(margin).relu_()
    value = torch.mul(missing, missing, out=scratch(t, 1)).sum() / count
    missing.mul_(away.mul_(2 / count))
    return value
