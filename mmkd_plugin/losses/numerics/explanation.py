"""The cosines of explanations (e2KD) in one pass over the maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.vectors import lengths_of_samples


def explanation_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.explanation.explanation_difference`."""
    check_shapes(student, teacher, ndims=(2, 4))
    count = max(len(student), 1)
    whole = student.dim()  # an explanation stays in one piece
    return one_pass(partial(_difference, count), student, teacher, dim=whole)


def _difference(count: int, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    length = lengths_of_samples(s, eps=1e-8)
    s = torch.div(s, length, out=slope)
    t = torch.div(t, lengths_of_samples(t, eps=1e-8), out=scratch(t))
    cosine = torch.mul(s, t, out=scratch(t, 1)).flatten(1).sum(1)
    if slope is not None:
        s.mul_(cosine.view_as(length)).sub_(t).div_(length * count)
    return (1 - cosine).sum() / count
