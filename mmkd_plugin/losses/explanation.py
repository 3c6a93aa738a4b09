"""Explanation loss of e2KD."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import explanation as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_samples
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.explanation_difference)
def explanation_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_n (1 - cos(E_S, E_T))``.

    Args:
        student (Tensor): Explanations, (N, C, H, W) or (N, C).
        teacher (Tensor): The same shape. It gets no gradient.

    Returns:
        Tensor: A scalar; 0 for no explanations.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        return (1 - explanation_similarity(s, t)).sum() / max(len(s), 1)


def explanation_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """The cosine of each pair of explanations, each flattened; 0 where one is all zero.

    Args:
        student (Tensor): (N, C, H, W) or (N, C), in float32 or wider.
        teacher (Tensor): The same shape.

    Returns:
        Tensor: (N,).
    """
    return (unit_samples(student, eps=1e-8) * unit_samples(teacher, eps=1e-8)).sum(1)


@MODELS.register_module()
class ExplanationLoss(nn.Module):
    """Be right for the teacher's reasons: explanations that point the same way (e2KD).

    The loss is ``mean_n (1 - cos(E_S, E_T))`` over pairs of explanations, each flattened. Their
    scale does not matter. A pair with an all-zero map costs 1 and has no gradient.

    It takes explanations instead of maps: one for each class explained in each image. In a config
    the term's ``explainer`` makes them, see :mod:`mmkd_plugin.explanations`. Those of the student
    must be made with ``create_graph=True``, since this loss is differentiated through them: a
    double backward.

    Good Teachers Explain: Explanation-Enhanced Knowledge Distillation, ECCV 2024.

    - paper: https://arxiv.org/abs/2402.03119
    - code: https://github.com/m-parchami/GoodTeachersExplain

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map; the paper calls
            it lambda. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), N explanations, or a sequence of such (the losses are
          added up).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: In ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ExplanationLoss
        >>> criterion = ExplanationLoss(loss_weight=5)
        >>> student = torch.randn(2, 1, 32, 32, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 1, 32, 32))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 1, 32, 32]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    compares: ClassVar[str] = 'explanations'

    def __init__(self, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of explanations, or of a sequence of them."""
        return sum_over_maps(explanation_difference, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
