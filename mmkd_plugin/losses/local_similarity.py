"""Local similarity (LOCAL): how similar each position is to its eight neighbours."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import local_similarity as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS

SIMILARITIES = ('distance', 'cosine')


# traced too: the compiled formula keeps eight maps, one of differences for each neighbour
@with_fast_form(fast.local_similarity, traced=True)
def local_similarity(student: Tensor, teacher: Tensor, similarity: str = 'distance') -> Tensor:
    """``mean of (m(student) - m(teacher))^2``, see :func:`neighbour_similarity`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        similarity (str): ``'distance'`` or ``'cosine'``. Defaults to ``'distance'``.

    Returns:
        Tensor: A scalar; 0 where there is no interior position.
    """
    check_shapes(student, teacher, same_channels=False)
    with full_precision(student, teacher) as (s, t):
        if min(s.shape[2:]) < 3:
            return s[:0].sum()  # 0, connected to the student
        gap = neighbour_similarity(s, similarity) - neighbour_similarity(t, similarity)
        return gap.square().sum() / max(gap.numel(), 1)


def neighbour_similarity(x: Tensor, similarity: str) -> Tensor:
    """Compare each interior position ``q`` with its eight neighbours ``r``.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        similarity (str): ``'distance'`` or ``'cosine'``.

    Returns:
        Tensor: ``sum over r of ||x_q - x_r||^2``, (N, H-2, W-2); or ``cos(x_q, x_r)`` for each of
        the neighbours, (8, N, H-2, W-2).
    """
    height, width = x.shape[2:]
    if similarity == 'cosine':
        x = unit_vectors(x)
    middle = x[:, :, 1 : height - 1, 1 : width - 1]
    neighbours = [
        x[:, :, row : row + height - 2, column : column + width - 2]
        for row in range(3)
        for column in range(3)
        if (row, column) != (1, 1)
    ]
    if similarity == 'cosine':
        return torch.stack([(middle * neighbour).sum(1) for neighbour in neighbours])
    return sum((middle - neighbour).square().sum(1) for neighbour in neighbours)


@MODELS.register_module()
class LocalSimilarityLoss(nn.Module):
    """Match how similar each position is to its eight neighbours (LOCAL).

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
        similarity (str): ``'distance'`` or ``'cosine'``. Defaults to ``'distance'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar. Maps with a side below 3 have no interior position and cost 0.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: If ``similarity`` is not one of the two or, in ``forward``, if shapes do not
            fit.

    Examples:
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

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(self, similarity: str = 'distance', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.similarity = one_of('similarity', similarity, SIMILARITIES)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: no position has eight neighbours."""
        if size is None or min(size) > 2:
            return None
        return 'no position has eight neighbours, the maps have a side below 3; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(local_similarity, similarity=self.similarity)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'similarity={self.similarity}, loss_weight={self.loss_weight}'
