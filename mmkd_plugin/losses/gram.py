"""Gram anchoring: the similarities of all positions of an image (DINOv3)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import relations as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS

NEGATIVES = ('clip', 'keep', 'teacher')


def _gram(student: Tensor, teacher: Tensor, negatives: str = 'clip') -> Tensor:
    check_shapes(student, teacher, same_channels=False)
    count = max(len(student) * student.shape[2:].numel() ** 2, 1)

    def compare(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        b = b if negatives == 'keep' else b.clamp_(min=0)
        gap = (a.clamp(min=0) if negatives == 'clip' else a) - b
        value = gap.square().sum() / count
        slope = gap.mul_(2 / count)
        return value, slope.masked_fill_(a <= 0, 0) if negatives == 'clip' else slope

    return fast.over_rows(student.flatten(2), teacher.flatten(2), compare)


@with_fast_form(_gram)
def gram(student: Tensor, teacher: Tensor, negatives: str = 'clip') -> Tensor:
    """``mean over N and all pairs of positions of (G_S - G_T)^2``, with cosines G.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        negatives (str): See :class:`GramLoss`. Defaults to ``'clip'``.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    with full_precision(student, teacher) as pair:
        s, t = (unit_vectors(x.flatten(2), eps=fast.EPS) for x in pair)
        of_s, of_t = s.mT @ s, t.mT @ t
        if negatives != 'keep':
            of_t = of_t.relu()
        gap = (of_s.relu() if negatives == 'clip' else of_s) - of_t
        return gap.square().sum() / max(gap.numel(), 1)


@MODELS.register_module()
class GramLoss(nn.Module):
    """Match how similar each pair of positions of an image is, where it is similar (DINOv3).

    The channel vectors of all n positions are brought to unit length, and G is the n x n matrix of
    their cosines, an image each; the loss is ``mean (G_S - G_T)^2``, with negative entries of both
    set to 0. No connector is needed: G has no channels. Rows are taken a few at a time, so memory
    goes with the maps and not with n^2 (under torch.compile, all at once). A vector no longer than
    1e-12 counts as 0, and gets no gradient.

    DINOv3, 2025 (its Gram anchoring).

    - paper: https://arxiv.org/abs/2508.10104
    - code: https://github.com/facebookresearch/dinov3

    Args:
        negatives (str): What becomes of negative cosines. ``'clip'``: they are set to 0 in both;
            ``'teacher'``: in the teacher alone; ``'keep'``: they stay, which is
            :class:`~mmkd_plugin.losses.PairWiseLoss` with ``pool=None``. Defaults to ``'clip'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: If ``negatives`` is unknown or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import GramLoss
        >>> criterion = GramLoss()
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 1024, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(self, negatives: str = 'clip', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.negatives = one_of('negatives', negatives, NEGATIVES)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single position always equals itself."""
        if size is None or math.prod(size) > 1:
            return None
        return 'a single position has nothing to be compared with; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(gram, negatives=self.negatives)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'negatives={self.negatives}, loss_weight={self.loss_weight}'
