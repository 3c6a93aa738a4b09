"""Normalised knowledge distillation (NKD): a soft target, and the other classes apart from it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import decoupled as fast
from mmkd_plugin.losses.numerics.checks import (
    an_index,
    check_shapes,
    loss_weights,
    temperature,
    weight,
)
from mmkd_plugin.losses.numerics.maps import Maps, Weight, one_for_each, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.targets import (
    is_target,
    log_softmax_of_others,
    mean_of_rows,
    target_classes,
)
from mmkd_plugin.registry import MODELS


def normalized_target(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    tau: float = 1.0,
    gamma: float = 1.5,
    ignore_index: int = 255,
) -> Tensor:
    """``mean over the rows of -p_T(y) * log p_S(y) - gamma * tau^2 * sum q_T * log q_S``.

    Args:
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        labels (Tensor): Integers, (N,) or (N, h, w).
        tau (float): Temperature of ``q``, the softmax over all classes but y. Defaults to 1.0.
        gamma (float): Factor on the part of ``q``. Defaults to 1.5.
        ignore_index (int): Rows with this label, or with one that is no class, leave the sum and
            the count. Defaults to 255.

    Returns:
        Tensor: A scalar; 0 where no row is left.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    classes, kept = target_classes(student, labels, ignore_index)
    if student.shape[1] == 1 or not len(student):  # no other class, no row
        with full_precision(student, teacher) as (s, _):
            return (s * 0).sum()
    of_rows = partial(cross_entropies, tau=tau, gamma=gamma)
    kernel = partial(fast.normalized_target, tau=tau, gamma=gamma)
    return mean_of_rows(of_rows, student, teacher, classes, kept, kernel)


def cross_entropies(s: Tensor, t: Tensor, classes: Tensor, tau: float, gamma: float) -> Tensor:
    """``-p_T(y) * log p_S(y) - gamma * tau^2 * sum q_T * log q_S`` of each row, (N, 1, ...)."""
    log_s, log_t = (x.log_softmax(1).gather(1, classes) for x in (s, t))
    target = is_target(s, classes)
    q_s, q_t = (log_softmax_of_others(x / tau, target)[0] for x in (s, t))
    return -log_t.exp() * log_s - gamma * tau**2 * (q_t.exp() * q_s).sum(1, keepdim=True)


@MODELS.register_module()
class NormalizedTargetLoss(nn.Module):
    """Soften the label by the teacher's certainty, and match all other classes apart (NKD).

    ``mean [-p_T(y) * log p_S(y)] - gamma * tau^2 * mean sum q_T * log q_S`` over N images or, of
    maps, over all positions that count: ``p = softmax(x)``, y is the class of the label, and ``q``
    is the softmax of ``x / tau`` over all classes but y. These are cross-entropies, so a student
    equal to its teacher costs something too.

    From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023.

    - paper: https://arxiv.org/abs/2303.13005
    - code: https://github.com/yzd-v/cls_KD

    Args:
        tau (float): Temperature of ``q``; the part of the label has none. Defaults to 1.0.
        gamma (float): Factor on the part of the other classes. The authors use 1.5 for
            convolutional networks and 1 for DeiT. Defaults to 1.5.
        ignore_index (int): Label of the rows to leave out. Labels that are no class are left out
            too. Defaults to 255.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C) or (N, C, H, W), or a sequence of such tensors (the losses are added up).
        - teacher: the same shapes as the student.
        - labels: integers, (N,) or (N, h, w), or one such tensor for each map; resized by nearest
          to each map of another size.
        - output: a scalar. A single class always costs 0.

    Raises:
        TypeError: If an argument or, in ``forward``, the labels have the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import NormalizedTargetLoss
        >>> criterion = NormalizedTargetLoss()
        >>> student = torch.randn(16, 100, requires_grad=True)
        >>> teacher = torch.randn(16, 100)
        >>> loss = criterion(student, teacher, torch.randint(0, 100, (16,)))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([16, 100]))
    """

    needs: ClassVar[tuple[str, ...]] = ('labels',)
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    compares_probabilities: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 1.0,
        gamma: float = 1.5,
        ignore_index: int = 255,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        self.gamma = weight('gamma', gamma)
        self.ignore_index = an_index('ignore_index', ignore_index)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single class is always certain."""
        return None if channels > 1 else 'the softmax over a single class is always 1'

    def forward(self, student: Maps, teacher: Maps, labels: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            normalized_target,
            tau=self.tau,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
        )
        each = one_for_each(labels, student)
        return sum_over_maps(compare, student, teacher, self.loss_weight, each)

    def extra_repr(self) -> str:
        return (
            f'tau={self.tau}, gamma={self.gamma}, ignore_index={self.ignore_index}, '
            f'loss_weight={self.loss_weight}'
        )
