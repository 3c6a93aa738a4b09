"""Pair-wise similarity of positions (PA), from structured knowledge distillation."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import one_pass_by_samples
from mmkd_plugin.losses.numerics.pooling import max_pool
from mmkd_plugin.losses.numerics.vectors import gram_gap, lengths, through_lengths
from mmkd_plugin.registry import MODELS

SIZE_HINT = (
    'leave `connector` out so that a bilinear resize is added, or set `pool=0.5` '
    'to compare fractions of the maps'
)


def pair_wise(
    student: Tensor,
    teacher: Tensor,
    pool: int | float | None = 2,
    detach_norm: bool = False,
) -> Tensor:
    """``1 / (N*n^2) * sum over all pairs of the n positions of (cos_T - cos_S)^2``.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        pool (int | float | None): See :class:`PairWiseLoss`. Default: 2.
        detach_norm (bool): See :class:`PairWiseLoss`. Default: False.

    Returns:
        Tensor: A scalar, never below 0.
    """
    check_shapes(
        student,
        teacher,
        same_channels=False,
        same_size=not isinstance(pool, float),
        size_hint=SIZE_HINT,
    )
    s, t = nodes(student, pool), nodes(teacher, pool)
    if s.shape[2:] != t.shape[2:]:
        raise ValueError(
            f'map sizes differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)} '
            f'leave {tuple(s.shape[2:])} and {tuple(t.shape[2:])} positions with pool={pool}; '
            'name a `connector` that resizes'
        )
    s, t = s.flatten(2), t.flatten(2)
    pairs = max(s.shape[0] * s.shape[2] ** 2, 1)
    return one_pass_by_samples(partial(cosine_gap, count=pairs, detach_norm=detach_norm), s, t)


def cosine_gap(
    s: Tensor, t: Tensor, count: int, detach_norm: bool = False
) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of positions of ``(cos_T - cos_S)^2 / count``, and its gradient.

    Args:
        s (Tensor): The student's vectors, (N, C_s, n), in float32 or wider.
        t (Tensor): The teacher's vectors, (N, C_t, n).
        count (int): What makes a mean of the sum.
        detach_norm (bool): See :class:`PairWiseLoss`. Default: False.

    Returns:
        tuple[Tensor, Tensor]: A scalar, never below 0, and its gradient with respect to ``s``.
    """
    length = lengths(s)
    value, gradient = gram_gap(s / length, t / lengths(t), count)
    return value, gradient.div_(length) if detach_norm else through_lengths(gradient, s, length)


def nodes(x: Tensor, pool: int | float | None) -> Tensor:
    """Max-pool without overlap; ``pool`` is a size, a fraction of the map, or None for no pooling.

    Args:
        x (Tensor): (N, C, H, W).
        pool (int | float | None): See :class:`PairWiseLoss`.

    Returns:
        Tensor: (N, C, h, w), every position of the input covered.
    """
    if pool is None or pool == 1:
        return x
    if not isinstance(pool, float):
        return F.max_pool2d(x, pool, stride=pool, ceil_mode=True)
    pool = float.fromhex(pool.hex())  # torch.compile makes a symbol of a float, but not of this
    return max_pool(x, tuple(max(int(pool * side), 1) for side in x.shape[2:]))


@MODELS.register_module()
class PairWiseLoss(nn.Module):
    """Match how similar each pair of positions is (PA).

    After max-pooling, the channel vectors of all n positions are brought to unit length; the loss
    is ``1 / (N*n^2) * sum over all n^2 pairs of (cos_T - cos_S)^2``. It never needs more memory
    than a few copies of the maps: the n x n matrices are built only where they are small.

    Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019 (its pair-wise part).

    - paper: https://arxiv.org/abs/1903.04197
    - code: https://github.com/irfanICMLL/structure_knowledge_distillation

    Args:
        pool (int | float | None): Kernel and stride of the max-pooling (ceil mode). An int is a
            size in positions. A float between 0 and 1 is a fraction of the map, ``(int(pool*H),
            int(pool*W))`` and at least 1; the authors' 0.5 leaves 2x2 nodes of a map with even
            sides. None compares every position. Default: 2.
        detach_norm (bool): Treat the norms as constants in the gradient, as the authors' code
            does; the value is the same. Default: False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            0.5 with ``pool=0.5``, 10 goes with ``pool=2``. Default: 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W). Channel counts may differ; sizes may differ if ``pool`` is a
          float and as many nodes are left of both.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``pool`` is out of range or, in ``forward``, if shapes do not fit.

    Example:
        >>> import torch
        >>> from mmkd_plugin.losses import PairWiseLoss
        >>> criterion = PairWiseLoss(pool=0.5, loss_weight=0.5)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 16, 32)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False

    def __init__(
        self,
        pool: int | float | None = 2,
        detach_norm: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        if pool is not None:
            if type(pool) not in (int, float):
                raise TypeError(f'pool must be an int, a float or None, got {pool!r}')
            if type(pool) is int and pool < 1:
                raise ValueError(f'pool as an int is a size and must be at least 1, got {pool}')
            if type(pool) is float and not 0 < pool < 1:
                raise ValueError(
                    f'pool as a float is a fraction of the map and must lie between 0 and 1, got '
                    f'{pool}; an int is a size in positions'
                )
        if not isinstance(detach_norm, bool):
            raise TypeError(f'detach_norm must be a bool, got {detach_norm!r}')
        self.pool = pool
        self.detach_norm = detach_norm
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs_same_size(self) -> bool:
        """Whether heights and widths must be equal: not if ``pool`` is a fraction of the map."""
        return not isinstance(self.pool, float)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(pair_wise, pool=self.pool, detach_norm=self.detach_norm)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'pool={self.pool}, detach_norm={self.detach_norm}, loss_weight={self.loss_weight}'
