"""Local similarity (LOCAL): how like its eight neighbours each position is."""

from __future__ import annotations

from functools import partial
from typing import Callable, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.functional import (
    Maps,
    Weight,
    check_shapes,
    full_precision,
    loss_weights,
    one_of,
    sum_over_maps,
    unit_vectors,
)
from mmkd_plugin.registry import MODELS

SIMILARITIES = ('distance', 'cosine')
#: Rows and columns from a position to four of its neighbours; the way back leads to the others.
STEPS = ((0, 1), (1, -1), (1, 0), (1, 1))


def local_similarity(student: Tensor, teacher: Tensor, similarity: str = 'distance') -> Tensor:
    """``mean of (m(student) - m(teacher))^2``, see :func:`similarity_maps`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        similarity (str): ``'distance'`` or ``'cosine'``. Default: ``'distance'``.

    Returns:
        Tensor: A scalar; 0 where there is no interior position.
    """
    check_shapes(student, teacher, same_channels=False)
    with full_precision(student, teacher) as (s, t):
        if min(s.shape[2:]) < 3:
            return s[:0].sum()  # 0, connected to the student
        target = similarity_maps(t, similarity)  # first: what it needs is free before s's graph
        gap = similarity_maps(s, similarity) - target
        return gap.square().sum() / max(gap.numel(), 1)


def similarity_maps(x: Tensor, similarity: str = 'distance') -> Tensor:
    """How like its eight neighbours each interior position is.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        similarity (str): ``'distance'``: the sum of the eight squared distances. ``'cosine'``: the
            eight cosines, each for itself. Default: ``'distance'``.

    Returns:
        Tensor: (N, H-2, W-2) for ``'distance'``, (8, N, H-2, W-2) for ``'cosine'``.
    """
    if similarity == 'cosine':
        return torch.stack(compare_neighbours(unit_vectors(x), lambda a, b: (a * b).sum(1)))
    # mse_loss keeps two views of x for backward, where (a - b).square() would keep a map each time
    distances = compare_neighbours(x, lambda a, b: F.mse_loss(a, b, reduction='none').sum(1))
    return torch.stack(distances).sum(0)


def compare_neighbours(x: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Compare each interior position with its eight neighbours.

    Args:
        x (Tensor): (N, C, H, W) with H and W of at least 3.
        compare (Callable): Takes two maps (N, C, h, w) and compares their positions: (N, h, w). It
            must not matter which comes first.

    Returns:
        list[Tensor]: One (N, H-2, W-2) for each neighbour.
    """
    height, width = x.shape[2] - 2, x.shape[3] - 2
    results = []
    for down, right in STEPS:
        # Two neighbours are compared once, also where both are interior positions: the pairs are
        # those of which one at least is.
        ahead, back = max(right, 0), max(-right, 0)
        first = x[:, :, 1 - down : 1 + height, 1 - ahead : 1 + width + back]
        second = x[:, :, 1 : 1 + height + down, 1 - back : 1 + width + ahead]
        pairs = compare(first, second)
        results.append(pairs[:, down:, ahead : ahead + width])  # the first one is interior
        results.append(pairs[:, :height, back : back + width])  # the second one is
    return results


@MODELS.register_module()
class LocalSimilarityLoss(nn.Module):
    """Match how like its eight neighbours each position is (LOCAL).

    Only interior positions are compared, those with all eight neighbours: (H-2)*(W-2) of them.

    - ``'distance'``: ``m(q) = sum over the 8 neighbours r of ||x_q - x_r||^2``; the loss is
      ``mean over N*(H-2)*(W-2) of (m_S - m_T)^2``. It grows with the fourth power of the scale of
      the maps.
    - ``'cosine'``: eight maps ``m_r(q) = cos(x_q, x_r)``; the loss is
      ``mean over 8*N*(H-2)*(W-2) of (m_S - m_T)^2``. A vector no longer than 1e-8 has cosine 0
      with all others and gets no gradient.

    Improving Fast Segmentation With Teacher-student Learning, BMVC 2018 (its first-order part).

    - paper: https://arxiv.org/abs/1810.08476
    - code: none by the authors

    Args:
        similarity (str): ``'distance'`` or ``'cosine'``. Default: ``'distance'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Default: 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar. Maps with a side below 3 have no interior position and cost 0.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: If ``similarity`` is not one of the two or, in ``forward``, if shapes do not
            fit.

    Example:
        >>> import torch
        >>> from mmkd_plugin.losses import LocalSimilarityLoss
        >>> criterion = LocalSimilarityLoss(similarity='cosine')
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True

    def __init__(self, similarity: str = 'distance', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.similarity = one_of('similarity', similarity, SIMILARITIES)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(local_similarity, similarity=self.similarity)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'similarity={self.similarity}, loss_weight={self.loss_weight}'
