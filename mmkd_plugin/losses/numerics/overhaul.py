"""The overhaul of feature distillation (OFD) in one pass over the maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.precision import common_type


def overhaul(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.overhaul.overhaul`."""
    check_shapes(student, teacher)
    margin = margin_of_channels(margin, teacher).to(common_type(student, teacher))
    count = max(len(student), 1)
    return one_pass(partial(_gap, count), student, teacher, margin.expand(student.shape))


def margin_of_channels(margin: Tensor, teacher: Tensor) -> Tensor:
    """The margin as (1, C, 1, 1), detached.

    Args:
        margin (Tensor): (C,) or (1, C, 1, 1).
        teacher (Tensor): (N, C, H, W); only its shape is read.

    Raises:
        ValueError: If the margin has another shape.
    """
    channels = teacher.shape[1]
    if tuple(margin.shape) not in ((channels,), (1, channels, 1, 1)):
        raise ValueError(
            f'margin must have one value for each of the {channels} channels of the teacher, '
            f'({channels},) or (1, {channels}, 1, 1), got {tuple(margin.shape)} for the teacher '
            f'{tuple(teacher.shape)}; margin_from_norm gives it from the batch norm before this map'
        )
    return margin.detach().view(1, -1, 1, 1)


def _gap(count: int, s: Tensor, t: Tensor, margin: Tensor, slope: Slope) -> Tensor:
    t = torch.maximum(t, margin, out=scratch(t))
    gap = torch.sub(s, t, out=slope)
    # no gap below 0 where t <= 0; masks of booleans are slow on a CPU
    lowest = t.sign_().relu_().mul_(torch.finfo(gap.dtype).min)
    torch.maximum(gap, lowest, out=gap)
    value = torch.mul(gap, gap, out=scratch(t, 1)).sum() / count
    gap.mul_(2 / count)
    return value
