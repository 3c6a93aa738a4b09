"""Overhaul of feature distillation (OFD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import overhaul as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_maps, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision, widest
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.overhaul)
def overhaul(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """``1/N * sum of (student - t)^2``, ``t = max(teacher, margin)``, but 0 if student <= t <= 0.

    Args:
        student (Tensor): Map of the student before its ReLU, (N, C, H, W).
        teacher (Tensor): Map of the teacher before its ReLU, same shape. It gets no gradient.
        margin (Tensor): The margin of each channel, (C,) or (1, C, 1, 1). It gets no gradient.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)
    margin = fast.margin_of_channels(margin, teacher)
    with full_precision(student, teacher) as (s, t):
        t = torch.maximum(t, margin.to(t.dtype))
        gap = s - t
        gap = torch.where(t > 0, gap, gap.relu())
        return gap.square().sum() / max(len(s), 1)


def margin_from_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """The mean of the values below 0 in each channel after a batch norm: ``E[x given x < 0]``.

    The norm leaves ``x ~ Normal(beta, |gamma|)``, so with ``a = beta / |gamma|`` the margin is
    ``beta - |gamma| * pdf(a) / cdf(-a)``. Where hardly anything is below 0 (``cdf(-a) <= 0.001``)
    it is ``-3 * |gamma|``. A channel with gamma = 0 is constantly beta. It gets the
    limit of the two cases: beta if that is below 0, else 0.

    Args:
        weight (Tensor): The norm's gamma, (C,).
        bias (Tensor): The norm's beta, (C,).

    Returns:
        Tensor: (C,), never above 0, without gradient; in the type of the arguments, at least
        float32.

    Raises:
        ValueError: If the arguments are not both (C,).
    """
    if weight.dim() != 1 or weight.shape != bias.shape:
        raise ValueError(
            f'weight and bias of a batch norm must both be (C,), got {tuple(weight.shape)} and '
            f'{tuple(bias.shape)}'
        )
    dtype = torch.promote_types(torch.promote_types(weight.dtype, bias.dtype), torch.float32)
    wide = widest(weight)  # the ratio cancels most of beta where that is large
    gamma, beta = weight.detach().to(wide).abs(), bias.detach().to(wide)
    a = beta / gamma
    log_pdf = -(a.square() + math.log(2 * math.pi)) / 2
    margin = beta - gamma * (log_pdf - torch.special.log_ndtr(-a)).exp()
    margin = torch.where(torch.special.ndtr(-a) <= 0.001, -3 * gamma, margin)
    return torch.where(gamma == 0, beta.clamp(max=0), margin).to(dtype)


@MODELS.register_module()
class OverhaulLoss(nn.Module):
    """Match the map before the ReLU, where the ReLU lets something of it through (OFD).

    Values of the teacher below a margin are raised to it: ``T' = max(T, margin)``, the margin of
    a channel being the mean of its negative values, see :func:`margin_from_norm`. The loss is the
    sum of ``(S - T')^2`` divided by N. It leaves out the positions where ``S <= T' <= 0``: the
    ReLU cuts both off.

    A Comprehensive Overhaul of Feature Distillation, ICCV 2019.

    - paper: https://arxiv.org/abs/1904.01866
    - code: https://github.com/clovaai/overhaul-distillation

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors
            use ``2^-(L - 1 - l)`` for stage l of L (0 is the first), times 1e-3 (CIFAR), 1e-4
            (ImageNet) or 1e-5 (segmentation on VOC). Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - margin: (C,) or (1, C, 1, 1), or a sequence of as many as there are maps.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number or, in ``forward``, if ``margin`` is not made
            of tensors.
        ValueError: In ``forward``, if shapes differ, or margins do not fit the maps.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import OverhaulLoss
        >>> from mmkd_plugin.losses.overhaul import margin_from_norm
        >>> criterion, norm = OverhaulLoss(loss_weight=1e-4), torch.nn.BatchNorm2d(64)
        >>> student = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> teacher = norm(torch.randn(2, 64, 8, 8))
        >>> margin = margin_from_norm(norm.weight, norm.bias)
        >>> loss = criterion(student, teacher, margin)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape, round(margin[0].item(), 4)
        (torch.Size([]), torch.Size([2, 64, 8, 8]), -0.7979)
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ('margin',)

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps, margin: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        margins, maps = as_maps(margin, 'margin'), as_maps(teacher, 'teacher')
        if len(margins) != len(maps):
            raise ValueError(
                f'there must be one margin per map, got {len(margins)} for {len(maps)} maps of the '
                'teacher'
            )
        return sum_over_maps(overhaul, student, maps, self.loss_weight, margins)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
