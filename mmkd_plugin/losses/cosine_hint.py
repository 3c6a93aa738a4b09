"""Cosine and smooth-L1 hints of any teacher (Theia, AM-RADIO)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of, weight
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import by_autograd, one_pass, through_sums
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_samples, unit_vectors
from mmkd_plugin.registry import MODELS

SCOPES = ('sample', 'token')
EPS = 1e-12  # a vector no longer than this has no direction


def _in_pieces(
    student: Tensor, teacher: Tensor, cos: float = 0.9, l1: float = 0.1, scope: str = 'sample'
) -> Tensor:
    check_shapes(student, teacher, ndims=(2, 4))
    count, tokens = max(student.numel(), 1), max(len(student) * student.shape[2:].numel(), 1)
    pair = [x.flatten(2) if x.dim() > 2 else x[:, :, None] for x in (student, teacher)]

    def of_tokens(s: Tensor, t: Tensor) -> Tensor:
        unit = partial(unit_vectors, eps=EPS)
        apart = 1 - (unit(s) * unit(t)).sum(1)
        value = F.smooth_l1_loss(s, t, reduction='sum')
        return cos / tokens * apart.sum() + l1 / count * value

    def sums(s: Tensor, t: Tensor) -> Tensor:
        apart = F.smooth_l1_loss(s, t, reduction='none')
        return torch.stack([x.sum((1, 2)) for x in (apart, s * t, s * s, t * t)], 1)

    def finish(sums: Tensor) -> Tensor:
        apart, along, of_s, of_t = sums.unbind(1)
        s, t = (x.masked_fill(x <= EPS**2, torch.inf).sqrt() for x in (of_s, of_t))
        cosine = along / s / t  # not by their product, whose gradient may be 0 * inf
        return cos * (1 - cosine).sum() / len(sums) + l1 / count * apart.sum()

    if scope == 'token' or not student.numel():
        return one_pass(by_autograd(of_tokens), *pair, dim=2)
    return through_sums(sums, finish, *pair)


@with_fast_form(_in_pieces)
def cosine_hint(
    student: Tensor, teacher: Tensor, cos: float = 0.9, l1: float = 0.1, scope: str = 'sample'
) -> Tensor:
    """``cos * mean(1 - cosine) + l1 * mean of the smooth-L1``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W) or (N, C).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.
        cos (float): Factor on the part of the cosine. Defaults to 0.9.
        l1 (float): Factor on the part of the smooth-L1 (beta = 1). Defaults to 0.1.
        scope (str): See :class:`CosineHintLoss`. Defaults to ``'sample'``.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    unit = unit_samples if scope == 'sample' else partial(unit_vectors, eps=EPS)
    with full_precision(student, teacher) as (s, t):
        apart = 1 - (unit(s) * unit(t)).sum(1)
        value = l1 * F.smooth_l1_loss(s, t, reduction='sum') / max(s.numel(), 1)
        return cos * apart.sum() / max(apart.numel(), 1) + value


@MODELS.register_module()
class CosineHintLoss(nn.Module):
    """Match the direction of the features, and a little their values (Theia).

    ``cos * mean(1 - cosine) + l1 * smooth-L1`` (beta = 1, mean over all elements), for features of
    foundation models. With several teachers, write a term for each; Theia takes the mean of them. A
    vector no longer than 1e-12 has no direction: its cosine is 0, without a gradient.

    Theia: Distilling Diverse Vision Foundation Models for Robot Learning, CoRL 2024.

    - paper: https://arxiv.org/abs/2407.20179
    - code: https://github.com/bdaiinstitute/theia

    Args:
        cos (float): Factor on the part of the cosine. Defaults to 0.9.
        l1 (float): Factor on the part of the smooth-L1. Defaults to 0.1.
        scope (str): What has a cosine: the whole ``'sample'``, flattened, as in Theia, or each
            ``'token'`` (position), as in AM-RADIO and better for dense prediction. Defaults to
            ``'sample'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student. Theia normalises its channels by a stored mean
          and deviation first.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import CosineHintLoss
        >>> criterion = CosineHintLoss(scope='token')
        >>> student = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 8)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    auto_share: ClassVar[float] = 0.5  # more does harm: docs/results.md, the trials

    def __init__(
        self,
        cos: float = 0.9,
        l1: float = 0.1,
        scope: str = 'sample',
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.cos, self.l1 = weight('cos', cos), weight('l1', l1)
        if not cos and not l1:
            raise ValueError('cos and l1 are both 0: nothing is left of the loss')
        self.scope = one_of('scope', scope, SCOPES)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(cosine_hint, cos=self.cos, l1=self.l1, scope=self.scope)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'cos={self.cos}, l1={self.l1}, scope={self.scope}, loss_weight={self.loss_weight}'
