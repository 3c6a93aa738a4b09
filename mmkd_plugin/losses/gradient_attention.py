"""Gradient-based attention transfer, the other form of AT."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import gradient_attention as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.gradient_attention)
def gradient_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """``||J_S - J_T||_2`` over the whole batch; its gradient where the two are equal is 0.

    Args:
        student (Tensor): Gradient of the student's task loss, (N, C, H, W) or (N, C).
        teacher (Tensor): Gradient of the teacher's task loss. It gets no gradient.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        gap = s - t
        if not len(gap):
            return gap.sum()
        # Gradients are small. With a largest entry of 1, no square of it can vanish.
        peak = gap.detach().abs().amax().clamp(min=torch.finfo(gap.dtype).tiny)
        return peak * torch.linalg.vector_norm(gap / peak)


@MODELS.register_module()
class GradientAttentionLoss(nn.Module):
    """Match how sensitive the task losses are to each activation (gradient-based AT).

    With ``J = dL_task/dx`` at a tap, the loss is ``||J_S - J_T||_2``: the L2 norm over the whole
    batch, not squared. It takes these gradients instead of the maps. Those of the student must be
    made with ``create_graph=True``, since this loss is differentiated through them: a double
    backward.

    If a task loss is a mean over many pixels, the entries of J are about 1e-8, which float16 cannot
    hold: give them in float32.

    Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
    via Attention Transfer, ICLR 2017 (its section on gradient-based attention).

    - paper: https://arxiv.org/abs/1612.03928
    - code: none released for this form

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map; the paper calls
            it beta/2. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such gradients (the losses are added
          up, one norm for each).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: In ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import GradientAttentionLoss
        >>> criterion = GradientAttentionLoss()
        >>> x = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> conv = torch.nn.Conv2d(3, 4, 3)
        >>> (student,) = torch.autograd.grad(conv(x).square().mean(), x, create_graph=True)
        >>> loss = criterion(student, torch.randn(2, 3, 8, 8))
        >>> loss.backward()
        >>> loss.shape, conv.weight.grad.shape
        (torch.Size([]), torch.Size([4, 3, 3, 3]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    compares: ClassVar[str] = 'gradients'

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a gradient, or of a sequence of gradients."""
        return sum_over_maps(gradient_attention, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
