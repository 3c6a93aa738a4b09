"""Review distillation (ReviewKD): maps compared at several scales."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import review as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.pooling import adaptive_pool
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS

SIDES = (4, 2, 1)


def _in_pieces(student: Tensor, teacher: Tensor) -> Tensor:
    check_shapes(student, teacher)
    return fast.hierarchical_context(student, teacher, _factors(student.shape[2]))


@with_fast_form(_in_pieces)
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """``(MSE + sum_i MSE of both pooled to k_i x k_i / 2^i) / (1 + sum_i 1 / 2^i)``.

    The k_i are those of 4, 2, 1 that are below the height, and i = 1, 2, ... counts them.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)
    total = 0
    with full_precision(student, teacher) as (s, t):
        gap = s - t  # pooling is linear
        for side, factor in _factors(gap.shape[2]).items():
            pooled = adaptive_pool(gap, (side, side), 'avg') if side else gap
            total = total + factor * pooled.square().sum() / max(pooled.numel(), 1)
    return total


def _factors(height: int) -> dict[int, float]:
    """The factor on the mean square of each pooling, by its side; 0 stands for no pooling."""
    sides = [0, *(side for side in SIDES if side < height)]
    total = sum(2.0**-i for i in range(len(sides)))
    return {side: 2.0**-i / total for i, side in enumerate(sides)}


@MODELS.register_module()
class ReviewLoss(nn.Module):
    """Match maps position by position and pooled to 4x4, 2x2 and 1x1 (ReviewKD).

    The hierarchical context loss: the mean squared difference, and with weights 1/2, 1/4 and 1/8
    that of both maps average-pooled, divided by the sum of the weights. A pooling to no fewer rows
    than the map has is left out. The student's maps come from a
    :class:`~mmkd_plugin.connectors.ReviewFusion`.

    Distilling Knowledge via Knowledge Review, CVPR 2021.

    - paper: https://arxiv.org/abs/2104.09044
    - code: https://github.com/dvlab-research/ReviewKD

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            0.8 to 2. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: In ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ReviewLoss
        >>> criterion = ReviewLoss(loss_weight=0.8)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 64, 8, 16))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        return sum_over_maps(hierarchical_context, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
