"""Gradient-based attention transfer, the other form of AT."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass, over_pieces
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.precision import common_type
from mmkd_plugin.registry import MODELS


def gradient_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """``||J_S - J_T||_2`` over the whole batch; its gradient where the two are equal is 0.

    Args:
        student (Tensor): Gradient of the student's task loss, (N, C, H, W) or (N, C).
        teacher (Tensor): Gradient of the teacher's task loss. It gets no gradient.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    if not len(student):
        return student.sum(dtype=common_type(student, teacher))
    # With a largest entry of 1, no square of it can vanish.
    peak = over_pieces(_largest, student, teacher).amax()
    tiny = torch.finfo(peak.dtype).tiny
    peak = peak.clamp(min=tiny)
    squares = one_pass(partial(_squares, peak), student, teacher)
    return peak * squares.clamp(min=tiny).sqrt() * (squares > 0)


def _largest(s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    return torch.sub(s, t, out=scratch(s)).abs_().amax()


def _squares(peak: Tensor, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
    gap = torch.sub(s, t, out=slope).div_(peak)
    value = torch.mul(gap, gap, out=scratch(gap)).sum()
    gap.mul_(2 / peak)
    return value


@MODELS.register_module()
class GradientAttentionLoss(nn.Module):
    """Match how sensitive the task losses are to each activation (gradient-based AT).

    With ``J = dL_task/dx`` at a tap, the loss is ``||J_S - J_T||_2``: the L2 norm over the whole
    batch, not squared. What is given are these gradients, not the maps. For the student they must
    have been made with ``create_graph=True``, since this loss is differentiated through them: a
    double backward.

    A mean of a task loss over many pixels has entries of J about 1e-8, which float16 cannot hold:
    they are to be given in float32.

    Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
    via Attention Transfer, ICLR 2017 (its section on gradient-based attention).

    - paper: https://arxiv.org/abs/1612.03928
    - code: none released for this form

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map; the paper calls
            it beta/2. Default: 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such gradients (the losses are added
          up, one norm for each).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: In ``forward``, if shapes do not fit.

    Example:
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

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = True
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True
    #: What it compares at the taps: the gradients of the task losses with respect to the maps
    #: there, instead of the maps. Read by the Distiller, which computes and hands them in.
    compares: ClassVar[str] = 'gradients'

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a gradient, or of a sequence of gradients."""
        return sum_over_maps(gradient_attention, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
