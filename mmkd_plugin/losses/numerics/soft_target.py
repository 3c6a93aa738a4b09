"""Soft targets, of images and of positions, in one pass over the logits."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes, kept_positions
from mmkd_plugin.losses.numerics.divergence import divergence
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.losses.numerics.standard import STANDARD_EPS, standardised


def soft_targets(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    sigmoid: bool = False,
    ndims: tuple[int, ...] = (2, 4),
    standardize: bool = False,
) -> Tensor:
    """See :func:`mmkd_plugin.losses.soft_target.soft_targets`."""
    check_shapes(student, teacher, ndims=ndims)
    weight = tau**2 / max(student.shape[0] * student.shape[2:].numel(), 1)
    if student.dim() == 4:
        student, teacher = student.flatten(2), teacher.flatten(2)
    return divergence(student, teacher, weight, tau, 1, sigmoid, standardize)


def pixel_wise(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    sigmoid: bool = False,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    standardize: bool = False,
) -> Tensor:
    """See :func:`mmkd_plugin.losses.pixel_wise.pixel_wise`."""
    if ignore_index is None:
        return soft_targets(student, teacher, tau, sigmoid, (4,), standardize)
    check_shapes(student, teacher)
    kept = kept_positions(student, labels, ignore_index).to(common_type(student, teacher))
    weight = kept.flatten(1)[:, None] * (tau**2 / kept.sum().clamp(min=1))
    student, teacher = student.flatten(2), teacher.flatten(2)
    return divergence(student, teacher, weight, tau, 1, sigmoid, standardize)


def standardised_logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with mean 0 and deviation 1 over the classes of each row, the teacher detached."""
    with no_autocast(student.device.type):
        return tuple(standardised(x, (1,), STANDARD_EPS) for x in (student, teacher.detach()))
