"""Hint learning (FitNets)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import hint as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.hint)
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean over all elements of (student - teacher)^2``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W) or (N, C).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        return (s - t).square().sum() / max(s.numel(), 1)


@MODELS.register_module()
class HintLoss(nn.Module):
    """Match every value of the map (FitNets).

    ``mean over all elements of (S - T)^2``. The authors' regressor on the student is a convolution
    without bias: ``connector=dict(type='mmkd_plugin.ConvConnector', bias=False)``.

    FitNets: Hints for Thin Deep Nets, ICLR 2015.

    - paper: https://arxiv.org/abs/1412.6550
    - code: https://github.com/adri-romsor/FitNets

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map. CIRKD uses 10,
            RepDistiller 100. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: In ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import HintLoss
        >>> criterion = HintLoss(loss_weight=100)
        >>> student = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 8)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        return sum_over_maps(hint, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
