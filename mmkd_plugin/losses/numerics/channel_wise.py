"""Channel-wise distillation (CWD) in one pass over the maps."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.divergence import divergence


def channel_wise(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """See :func:`mmkd_plugin.losses.channel_wise.channel_wise`."""
    check_shapes(student, teacher)
    weight = tau**2 / max(student.shape[0] * student.shape[1], 1)
    return divergence(student.flatten(2), teacher.flatten(2), weight, tau, dim=2)
