"""Soft targets: Hinton's distillation."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import soft_target as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    temperature,
    true_or_false,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


# traced too: the compiled formula keeps twice as much, and takes twice as long
@with_fast_form(fast.soft_targets, traced=True)
def soft_targets(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    sigmoid: bool = False,
    ndims: tuple[int, ...] = (2, 4),
    standardize: bool = False,
) -> Tensor:
    """``tau^2 * mean of KL`` over the images or, of maps, over all positions.

    Args:
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        tau (float): Temperature of both distributions. Defaults to 1.0.
        sigmoid (bool): Whether the classes are independent, see :func:`yes_or_no_divergence`.
            Defaults to False, a softmax over them.
        ndims (tuple[int, ...]): The numbers of dimensions to accept. Defaults to (2, 4).
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 in each row.
            Defaults to False.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=ndims)
    with full_precision(student, teacher) as (s, t):
        if standardize:
            s, t = fast.standardised_logits(s, t)
        if sigmoid:
            kl = yes_or_no_divergence(s / tau, t / tau)
        else:
            log_s, log_t = (F.log_softmax(x / tau, dim=1) for x in (s, t))
            kl = (log_t.exp() * (log_t - log_s)).sum(1)
        return tau**2 * kl.sum() / max(kl.numel(), 1)


def yes_or_no_divergence(s: Tensor, t: Tensor) -> Tensor:
    """Each class as a yes or no of its own: ``sum over C of KL(sigmoid(t) || sigmoid(s))``.

    Args:
        s (Tensor): Logits of the student, (N, C, ...), in float32 or wider.
        t (Tensor): Logits of the teacher, same shape.

    Returns:
        Tensor: (N, ...).
    """
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(1)


def check_standardize(standardize: bool, sigmoid: bool) -> bool:
    """Return ``standardize`` if it is a bool that goes with ``sigmoid``, else raise.

    Raises:
        TypeError: If it is not a bool.
        ValueError: If both are True.
    """
    if true_or_false('standardize', standardize) and sigmoid:
        raise ValueError(
            'standardize=True must not be used with sigmoid=True, whose classes are independent; '
            'leave one of the two out'
        )
    return standardize


def no_classes(channels: int, sigmoid: bool, standardize: bool) -> str | None:
    """Why a softmax over so many classes cannot teach, if it cannot."""
    if standardize and channels == 2:
        return 'two logits are always -0.71 and 0.71 once standardised; leave `standardize` out'
    if sigmoid or channels > 1:
        return None
    return 'the softmax over a single class is always 1; set sigmoid=True'


@MODELS.register_module()
class SoftTargetLoss(nn.Module):
    """Match the teacher's softened class distribution (Hinton's KD).

    ``tau^2 / N * sum of KL`` for the logits of a classifier. Of a map, every position counts as an
    image does: then it is :class:`~mmkd_plugin.losses.PixelWiseLoss`.

    Distilling the Knowledge in a Neural Network, NIPS 2014 Deep Learning Workshop.

    - paper: https://arxiv.org/abs/1503.02531
    - code: none by the authors

    Args:
        tau (float): Temperature of the softmax; a higher one is softer. Defaults to 4.0.
        sigmoid (bool): For heads whose classes are independent: each channel is a yes or no of
            its own, and the divergences of the channels are added up. Defaults to False.
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 in each row,
            ``(x - mean) / (std + 1e-7)`` with the unbiased deviation, in both models: Logit
            Standardization in Knowledge Distillation, https://arxiv.org/abs/2403.01427. Its authors
            then use ``tau=2`` and nine times the weight. Equal logits become 0 and get no gradient.
            Not with ``sigmoid``. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C) or (N, C, H, W), or a sequence of such tensors (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar. A single channel always costs 0, unless ``sigmoid``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``tau`` is not above 0 or, in ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import SoftTargetLoss
        >>> criterion = SoftTargetLoss(tau=4, loss_weight=0.9)
        >>> student = torch.randn(16, 100, requires_grad=True)
        >>> teacher = torch.randn(16, 100)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([16, 100]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 4.0,
        sigmoid: bool = False,
        standardize: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        self.sigmoid = true_or_false('sigmoid', sigmoid)
        self.standardize = check_standardize(standardize, sigmoid)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def compares_probabilities(self) -> bool:
        """Whether it compares nothing but the probabilities of classes."""
        return not self.sigmoid and not self.standardize

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single class is always 1."""
        return no_classes(channels, self.sigmoid, self.standardize)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            soft_targets, tau=self.tau, sigmoid=self.sigmoid, standardize=self.standardize
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'tau={self.tau}, sigmoid={self.sigmoid}, standardize={self.standardize}, '
            f'loss_weight={self.loss_weight}'
        )
