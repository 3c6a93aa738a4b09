"""Activation boundaries (AB)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import activation_boundary as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, positive_number
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


# traced too: the compiled formula keeps a mask of booleans, and takes ten times as long on a CPU
@with_fast_form(fast.activation_boundary, traced=True)
def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """``1/N * sum of max(0, margin - a)^2`` with ``a = student if teacher > 0 else -student``.

    Args:
        student (Tensor): Map of the student before its ReLU, (N, C, H, W) or (N, C).
        teacher (Tensor): Map of the teacher before its ReLU, same shape. It gets no gradient.
        margin (float): How far beyond 0 the student has to be. Defaults to 1.0.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        missing = (margin - torch.where(t > 0, s, -s)).relu()
        return missing.square().sum() / max(len(s), 1)


@MODELS.register_module()
class ActivationBoundaryLoss(nn.Module):
    """Match which neurons fire, by a margin, and not how strongly (AB).

    On maps before the ReLU: ``max(0, margin - S)^2`` where the teacher's neuron fires (T > 0),
    ``max(0, S + margin)^2`` where it does not; the sum over all elements is divided by N. Even a
    student equal to its teacher pays where it is within the margin.

    Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
    AAAI 2019.

    - paper: https://arxiv.org/abs/1811.03233
    - code: https://github.com/bhheo/AB_distillation

    Args:
        margin (float): How far beyond 0 the student has to be, above 0. Defaults to 1.0.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors
            use ``3/1000 * 2^-(L - 1 - l)`` for stage l of L (0 is the first), in an initialisation
            stage of its own. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``margin`` is not above 0 or, in ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ActivationBoundaryLoss
        >>> criterion = ActivationBoundaryLoss(loss_weight=[0.00075, 0.0015, 0.003])
        >>> student = [torch.randn(2, 64, 8, 8, requires_grad=True) for _ in range(3)]
        >>> teacher = [torch.randn(2, 64, 8, 8) for _ in range(3)]
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student[0].grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(self, margin: float = 1.0, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.margin = positive_number('margin', margin)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(activation_boundary, margin=self.margin)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'margin={self.margin}, loss_weight={self.loss_weight}'
