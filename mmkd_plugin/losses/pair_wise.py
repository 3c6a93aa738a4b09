"""Pair-wise similarity of positions (PA), from structured knowledge distillation."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import pair_wise as fast
from mmkd_plugin.losses.numerics.checks import loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS


# traced too: the matrices of all pairs of positions would take gigabytes
@with_fast_form(fast.pair_wise, traced=True)
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
        pool (int | float | None): See :class:`PairWiseLoss`. Defaults to 2.
        detach_norm (bool): See :class:`PairWiseLoss`. Defaults to False.

    Returns:
        Tensor: A scalar, never below 0.
    """
    s, t = fast.nodes_of_both(student, teacher, pool)  # max-pooled, (N, C, n)
    with full_precision(s, t) as (s, t):
        s, t = unit_vectors(s, detach_norm), unit_vectors(t)
        gap = t.mT @ t - s.mT @ s
        return gap.square().sum() / max(gap.numel(), 1)


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
            sides. None compares every position. Defaults to 2.
        detach_norm (bool): Treat the norms as constants in the gradient, as the authors' code
            does; the value is the same. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            0.5 with ``pool=0.5``, 10 goes with ``pool=2``. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W). Channel counts may differ; sizes may differ if ``pool`` is a
          float and as many nodes are left of both.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``pool`` is out of range or, in ``forward``, if shapes do not fit.

    Examples:
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

    needs_same_channels: ClassVar[bool] = False
    auto_share: ClassVar[float] = 0.5  # more gains less: docs/results.md, the trials

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

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single node is always equal to itself."""
        if size is None or any(_nodes(side, self.pool) > 1 for side in size):
            return None
        return (
            f'pool={self.pool} leaves one node of maps of {"x".join(map(str, size))} positions, '
            'which has nothing to be compared with; lower `pool`, or tap larger maps'
        )

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(pair_wise, pool=self.pool, detach_norm=self.detach_norm)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'pool={self.pool}, detach_norm={self.detach_norm}, loss_weight={self.loss_weight}'


def _nodes(side: int, pool: int | float | None) -> int:
    """How many nodes are left of a side."""
    kernel = max(int(pool * side), 1) if isinstance(pool, float) else pool or 1
    return -(-side // kernel)
