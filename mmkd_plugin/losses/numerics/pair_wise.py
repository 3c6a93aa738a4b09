"""Pair-wise similarity (PA) with its gradient by formula, without a matrix of all pairs."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import one_pass_by_samples
from mmkd_plugin.losses.numerics.pooling import max_pool
from mmkd_plugin.losses.numerics.vectors import gram_gap, lengths, through_lengths

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
    """See :func:`mmkd_plugin.losses.pair_wise.pair_wise`."""
    s, t = nodes_of_both(student, teacher, pool)
    pairs = max(s.shape[0] * s.shape[2] ** 2, 1)
    return one_pass_by_samples(partial(cosine_gap, count=pairs, detach_norm=detach_norm), s, t)


def nodes_of_both(
    student: Tensor, teacher: Tensor, pool: int | float | None
) -> tuple[Tensor, Tensor]:
    """The nodes of both maps, in a row: (N, C_s, n) and (N, C_t, n), see :func:`nodes`.

    Raises:
        ValueError: If they cannot be compared.
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
    return s.flatten(2), t.flatten(2)


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


def cosine_gap(
    s: Tensor, t: Tensor, count: int, detach_norm: bool = False
) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of positions of ``(cos_T - cos_S)^2 / count``, and its gradient.

    Args:
        s (Tensor): The student's vectors, (N, C_s, n), in float32 or wider.
        t (Tensor): The teacher's vectors, (N, C_t, n).
        count (int): The divisor that makes a mean of the sum.
        detach_norm (bool): See :class:`PairWiseLoss`. Defaults to False.

    Returns:
        tuple[Tensor, Tensor]: A scalar, never below 0, and its gradient with respect to ``s``.
    """
    length = lengths(s)
    value, gradient = gram_gap(s / length, t / lengths(t), count)
    return value, gradient.div_(length) if detach_norm else through_lengths(gradient, s, length)
