"""Decoupled knowledge distillation (DKD): the class of the label, and all others."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import decoupled as fast
from mmkd_plugin.losses.numerics.checks import (
    an_index,
    check_shapes,
    loss_weights,
    temperature,
    true_or_false,
    weight,
)
from mmkd_plugin.losses.numerics.maps import Maps, Weight, one_for_each, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.standard import STANDARD_EPS, of_standardised, standardised
from mmkd_plugin.losses.numerics.targets import (
    is_target,
    log_softmax_of_others,
    mean_of_rows,
    target_classes,
)
from mmkd_plugin.registry import MODELS


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    tau: float = 4.0,
    standardize: bool = False,
    ignore_index: int = 255,
) -> Tensor:
    """``tau^2 * mean over the rows of alpha * KL(b_T || b_S) + beta * KL(q_T || q_S)``.

    Args:
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        labels (Tensor): Integers, (N,) or (N, h, w).
        alpha (float): Factor on the divergence of ``b = (p_y, 1 - p_y)``. Defaults to 1.0.
        beta (float): Factor on that of ``q``, the softmax over the other classes. Defaults to 8.0.
        tau (float): Temperature of all distributions. Defaults to 4.0.
        standardize (bool): See :class:`DecoupledLoss`. Defaults to False.
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
    of_rows = partial(divergences, alpha=alpha, beta=beta, tau=tau, standardize=standardize)
    kernel = partial(fast.decoupled, alpha=alpha, beta=beta, tau=tau)
    kernel = of_standardised(kernel, dim=1) if standardize else kernel
    return tau**2 * mean_of_rows(of_rows, student, teacher, classes, kept, kernel)


def divergences(
    s: Tensor, t: Tensor, classes: Tensor, alpha: float, beta: float, tau: float, standardize: bool
) -> Tensor:
    """``alpha * KL(b_T || b_S) + beta * KL(q_T || q_S)`` of each row, (N, 1, ...)."""
    if standardize:
        s, t = (standardised(x, (1,), STANDARD_EPS) for x in (s, t))
    target = is_target(s, classes)
    (y_s, n_s, q_s), (y_t, n_t, q_t) = (split(x / tau, classes, target) for x in (s, t))
    of_target = y_t.exp() * (y_t - y_s) + n_t.exp() * (n_t - n_s)
    return alpha * of_target + beta * (q_t.exp() * (q_t - q_s)).sum(1, keepdim=True)


def split(x: Tensor, classes: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p_y``, ``log (1 - p_y)`` and the logarithms of ``q``, which are 0 at the class y.

    They are differences of sums of exponentials, so that no probability has to be subtracted from
    1: they are finite however certain a prediction is.

    Args:
        x (Tensor): Logits over the temperature, (N, C, ...).
        classes (Tensor): int64, (N, 1, ...).
        target (Tensor): Where the channel is the class, the shape of the logits.
    """
    x = x - x.detach().amax(1, keepdim=True)
    log_q, others = log_softmax_of_others(x, target)
    y = x.gather(1, classes)
    both = torch.logaddexp(y, others)
    return y - both, others - both, log_q


@MODELS.register_module()
class DecoupledLoss(nn.Module):
    """Match the certainty about the labelled class, and apart from it all other classes (DKD).

    With ``p = softmax(x / tau)``, ``b = (p_y, 1 - p_y)`` for the class y of the label, and ``q``
    the softmax over all classes but y, the loss is
    ``tau^2 / N * (alpha * sum of KL(b_T || b_S) + beta * sum of KL(q_T || q_S))``, over N images
    or, of maps, over all positions that count.

    The authors' code subtracts 1000 from the logit of the class, and takes the logarithm of ``p_y``
    and of ``1 - p_y``: for a certain prediction it is infinite. Here both are exact.

    Decoupled Knowledge Distillation, CVPR 2022.

    - paper: https://arxiv.org/abs/2203.08679
    - code: https://github.com/megvii-research/mdistiller

    Args:
        alpha (float): Factor on the part of the labelled class. Defaults to 1.0.
        beta (float): Factor on the part of the other classes. The authors use 8 with ``tau=4`` on
            CIFAR-100, 0.5 with ``tau=1`` on ImageNet and 0.25 with ``tau=1`` on the class scores of
            boxes. Defaults to 8.0.
        tau (float): Temperature of the softmax; a higher one is softer. Defaults to 4.0.
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 in each row,
            see :class:`~mmkd_plugin.losses.SoftTargetLoss`. Defaults to False.
        ignore_index (int): Label of the rows to leave out. Labels that are no class are left out
            too. Defaults to 255.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors ramp
            it up over the first 20 epochs on CIFAR-100. Defaults to 1.0.

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
        >>> from mmkd_plugin.losses import DecoupledLoss
        >>> criterion = DecoupledLoss(beta=0.5, tau=1)
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

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        tau: float = 4.0,
        standardize: bool = False,
        ignore_index: int = 255,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = weight('alpha', alpha), weight('beta', beta)
        if not alpha and not beta:
            raise ValueError('alpha and beta are both 0: nothing is left of the loss')
        self.tau = temperature('tau', tau)
        self.standardize = true_or_false('standardize', standardize)
        self.ignore_index = an_index('ignore_index', ignore_index)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def compares_probabilities(self) -> bool:
        """Whether it compares nothing but the probabilities of classes."""
        return not self.standardize

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single class is always certain."""
        return None if channels > 1 else 'the softmax over a single class is always 1'

    def forward(self, student: Maps, teacher: Maps, labels: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            decoupled,
            alpha=self.alpha,
            beta=self.beta,
            tau=self.tau,
            standardize=self.standardize,
            ignore_index=self.ignore_index,
        )
        each = one_for_each(labels, student)
        return sum_over_maps(compare, student, teacher, self.loss_weight, each)

    def extra_repr(self) -> str:
        return (
            f'alpha={self.alpha}, beta={self.beta}, tau={self.tau}, '
            f'standardize={self.standardize}, ignore_index={self.ignore_index}, '
            f'loss_weight={self.loss_weight}'
        )
