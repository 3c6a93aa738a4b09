"""Channel-wise knowledge distillation (CWD)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import channel_wise as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    temperature,
    true_or_false,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import by_autograd, one_pass
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.standard import standardised
from mmkd_plugin.registry import MODELS

#: What is added to the deviation of a channel that is standardized.
EPS = 1e-6


# traced too: the compiled formula keeps two maps instead of one, and takes twice as long
@with_fast_form(fast.channel_wise, traced=True)
def channel_wise(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Each channel as a distribution over its positions: ``tau^2 / (N*C) * sum of KL``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, (N, C, H, W). It gets no gradient.
        tau (float): Temperature of both softmaxes. Defaults to 4.0.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)
    with full_precision(student, teacher) as (s, t):
        log_s, log_t = (F.log_softmax(x.flatten(2) / tau, dim=2) for x in (s, t))
        kl = (log_t.exp() * (log_t - log_s)).sum(2)  # (N, C)
        return tau**2 * kl.sum() / max(kl.numel(), 1)


def _in_pieces(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    check_shapes(student, teacher)
    count = max(student.shape[0] * student.shape[1], 1)

    def formula(s: Tensor, t: Tensor) -> Tensor:
        z_s, z_t = (standardised(x, (1, 2, 3), EPS) for x in (s, t))
        return _divergence(z_s, z_t, tau).sum() / count

    by_channels = (x.transpose(0, 1) for x in (student, teacher))
    return one_pass(by_autograd(formula), *by_channels, dim=4)  # a channel stays whole


@with_fast_form(_in_pieces)
def standardized_channel_wise(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """:func:`channel_wise` of maps whose channels have mean 0 and standard deviation 1.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, (N, C, H, W). It gets no gradient.
        tau (float): Temperature of both softmaxes. Defaults to 4.0.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)
    with full_precision(student, teacher) as pair:
        s, t = (standardised(x, (0, 2, 3), EPS) for x in pair)
        divergence = _divergence(s, t, tau)
        return divergence.sum() / max(divergence.numel(), 1)


def _divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """``tau^2 * KL`` of each channel of each image, (N, C)."""
    log_s, log_t = (F.log_softmax(x.flatten(2) / tau, dim=2) for x in (student, teacher))
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(2)


@MODELS.register_module()
class ChannelWiseLoss(nn.Module):
    """Make each channel of the student peak where the teacher's does.

    A softmax over the H*W positions turns a channel into a map of where it looks; the loss is
    ``tau^2 / (N*C) * sum over n, c of KL(p_tau(T_nc) || p_tau(S_nc))``.

    Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.

    - paper: https://arxiv.org/abs/2011.13256
    - code: https://github.com/irfanICMLL/TorchDistiller/tree/main/SemSeg-distill

    Args:
        tau (float): Temperature of the softmax; a higher one is softer. Defaults to 4.0.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            3 on logits (before upsampling) and 50 on features, both with ``tau=4``, and 10 with
            ``tau=1`` on the levels of a detector's pyramid. Defaults to 1.0.
        standardize (bool): Whether each channel is brought to mean 0 and standard deviation 1
            first, over the images of one process and all positions. Then it does not matter how
            large the maps of a model are. MMYOLO distils RTMDet in this way, with ``tau=1`` and
            ``loss_weight=1``. Defaults to False.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar. A channel with one position always costs 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``tau`` is not above 0 or, in ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ChannelWiseLoss
        >>> criterion = ChannelWiseLoss(tau=4, loss_weight=3)
        >>> student = torch.randn(2, 19, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 19, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 19, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self, tau: float = 4.0, loss_weight: Weight = 1.0, standardize: bool = False
    ) -> None:
        super().__init__()
        self.standardize = true_or_false('standardize', standardize)
        self.tau = temperature('tau', tau)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single position is always 1."""
        if size is None or math.prod(size) > 1:
            return None
        return 'the softmax over the single position of these maps is always 1; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        formula = standardized_channel_wise if self.standardize else channel_wise
        compare = partial(formula, tau=self.tau)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        standardize = ', standardize=True' if self.standardize else ''
        return f'tau={self.tau}, loss_weight={self.loss_weight}{standardize}'
