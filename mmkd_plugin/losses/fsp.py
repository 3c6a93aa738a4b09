"""Flow of the solution procedure (FSP)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    one_of,
    true_or_false,
)
from mmkd_plugin.losses.numerics.maps import Weight, as_pairs, weighted_sum
from mmkd_plugin.losses.numerics.pooling import pool_to_common_size
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import distances_to_zero
from mmkd_plugin.registry import MODELS

POOLS = ('max', 'avg')


def fsp(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    pool: str = 'max',
    squared: bool = True,
) -> Tensor:
    """``mean over N and the C1*C2 entries of (G(student) - G(teacher))^2``.

    Args:
        student (Sequence[Tensor]): Two maps of the student, (N, C1, H, W) and (N, C2, h, w).
        teacher (Sequence[Tensor]): Two maps of the teacher, with as many channels. They get no
            gradient.
        pool (str): See :class:`FSPLoss`. Defaults to ``'max'``.
        squared (bool): See :class:`FSPLoss`. Defaults to True.

    Returns:
        Tensor: A scalar.
    """
    first, second = zip(student, teacher)
    for pair in (first, second):
        check_shapes(*pair, same_size=False)
    if len(first[0]) != len(second[0]):
        raise ValueError(
            'batch sizes of the two maps differ: '
            f'first {tuple(first[0].shape)}, second {tuple(second[0].shape)}; '
            'choose taps that see the same images'
        )
    with full_precision(*first) as (s1, t1), full_precision(*second) as (s2, t2):
        gap = flow_matrix(s1, s2, pool) - flow_matrix(t1, t2, pool)
        if squared:
            return gap.square().sum() / max(gap.numel(), 1)
        return distances_to_zero(gap).sum() / max(len(gap), 1)


def flow_matrix(first: Tensor, second: Tensor, pool: str = 'max') -> Tensor:
    """``G = F1 F2^T / (H*W)``: how much two maps of one model have in common, channel by channel.

    Args:
        first (Tensor): (N, C1, H, W), in float32 or wider.
        second (Tensor): (N, C2, h, w). The larger of the two is pooled to the smaller.
        pool (str): ``'max'`` or ``'avg'``. Defaults to ``'max'``.

    Returns:
        Tensor: (N, C1, C2).
    """
    first, second = (x.flatten(2) for x in pool_to_common_size(first, second, pool))
    return first @ second.mT / first.shape[2]


@MODELS.register_module()
class FSPLoss(nn.Module):
    """Match how the features of one layer turn into those of the next (FSP).

    For two maps of one model, ``G = F1 F2^T / (H*W)`` holds the mean product over the positions of
    each channel of the one with each of the other; the loss is the mean over N and the C1*C2
    entries of ``(G_S - G_T)^2``. Of L maps, each is paired with the next one and the L-1 losses
    are added up.

    A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning, CVPR 2017.

    - paper: https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html
    - code: none by the authors

    Args:
        pool (str): How the larger of two maps is brought to the size of the smaller, adaptively:
            ``'max'``, as in the paper, or ``'avg'``, as in common reimplementations. Default:
            ``'max'``.
        squared (bool): Whether entries are squared. False is the form of torchdistill: the L2 norms
            of the C2 columns of ``G_S - G_T``, added up, mean over N. Defaults to True.
        loss_weight (float | list[float]): Factor on the loss, or one for each pair of consecutive
            maps (L-1 of them). RepDistiller uses 50 with ``pool='avg'``. Defaults to 1.0.

    Shape:
        - student: a sequence of L >= 2 maps (N, C_i, H_i, W_i).
        - teacher: as many maps, with the same channels one by one; sizes may differ.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``pool`` is unknown or, in ``forward``, if shapes do not fit or there is only
            one map.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import FSPLoss
        >>> criterion = FSPLoss(loss_weight=50)
        >>> student = [torch.randn(2, c, s, s, requires_grad=True) for c, s in ((64, 16), (128, 8))]
        >>> teacher = [torch.randn(2, c, s, s) for c, s in ((64, 32), (128, 16))]
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student[0].grad.shape
        (torch.Size([]), torch.Size([2, 64, 16, 16]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = False

    def __init__(self, pool: str = 'max', squared: bool = True, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.pool = one_of('pool', pool, POOLS)
        self.squared = true_or_false('squared', squared)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the weighted loss of two maps or more of each model."""
        students, teachers = as_pairs(student, teacher)
        if len(students) < 2:
            raise ValueError(
                'FSPLoss compares pairs of maps of one model and got one map alone, student '
                f'{tuple(students[0].shape)}; tap two or more, such as '
                "tap=['backbone.layer1', 'backbone.layer2']"
            )
        losses = [
            fsp(pair, other, self.pool, self.squared)
            for pair, other in zip(
                pairwise(students),
                pairwise(teachers),
            )
        ]
        return weighted_sum(losses, self.loss_weight)

    def extra_repr(self) -> str:
        return f'pool={self.pool}, squared={self.squared}, loss_weight={self.loss_weight}'
