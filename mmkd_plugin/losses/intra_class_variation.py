"""Intra-class feature variation (IFVD): how far each position is from the centre of its class."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.functional import (
    Maps,
    Weight,
    check_shapes,
    full_precision,
    labels_at,
    loss_weights,
    sum_over_maps,
)
from mmkd_plugin.registry import MODELS

EPS = 1e-8
COUNT_EPS = 1e-6


def intra_class_variation(
    student: Tensor, teacher: Tensor, labels: Tensor, ignore_index: int = 255
) -> Tensor:
    """``mean over N*H*W of (cos(S, c_S) - cos(T, c_T))^2``, see :func:`centre_cosines`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        labels (Tensor): Integers, (N, h, w).
        ignore_index (int): Positions with this label, or a negative one, add 0. Default: 255.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    labels = labels_at(student, labels)
    segments, counts = segments_of(labels)
    with full_precision(student, teacher) as (s, t):
        target = centre_cosines(t, segments, counts)  # first: it leaves nothing behind
        gap = centre_cosines(s, segments, counts) - target
        # Their own centre: a cosine of 1 in both. They share a segment only to be masked here.
        own_centre = (labels == ignore_index) | (labels < 0)
        gap = gap.masked_fill(own_centre.flatten(), 0)
        return gap.square().sum() / max(gap.numel(), 1)


def segments_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the pairs of (image, class) that occur, so that ids may be large and sparse.

    Args:
        labels (Tensor): int64, (N, H, W).

    Returns:
        tuple[Tensor, Tensor]: The number of each position's pair, (N*H*W,), and how many
        positions each pair has.
    """
    batch = labels.shape[0]
    pairs = labels * batch + torch.arange(batch, device=labels.device).view(-1, 1, 1)
    # How many there are sizes the table of the centres, so a GPU is waited for once. Without that
    # the table would need a row for every position: the size of the map, and no longer that of
    # the classes.
    _, segments, counts = pairs.unique(return_inverse=True, return_counts=True)
    return segments.flatten(), counts


def centre_cosines(x: Tensor, segments: Tensor, counts: Tensor) -> Tensor:
    """The cosine of each position and the mean of its segment, through which gradient flows.

    The value is that of :func:`torch.nn.functional.cosine_similarity`, which divides by norms of
    at least 1e-8; but a vector no longer than that gets no gradient, instead of one of up to 1e8.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        segments (Tensor): A segment for each position, (N*H*W,).
        counts (Tensor): How many positions each segment has.

    Returns:
        Tensor: (N*H*W,).
    """
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)  # no copy if channels_last
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, segments, rows)
    centres = sums / (counts[:, None].to(sums.dtype) + COUNT_EPS)
    centres = over_norm(centres, torch.linalg.vector_norm(centres, dim=1, keepdim=True))
    # Not centres[segments]: its backward is slow on a GPU where an index occurs this often.
    products = (rows * centres.index_select(0, segments)).sum(1)
    return over_norm(products, torch.linalg.vector_norm(rows, dim=1))


def over_norm(x: Tensor, norm: Tensor) -> Tensor:
    """``x / max(norm, 1e-8)``, without a gradient where the norm is no larger than that."""
    return torch.where(norm > EPS, x, x.detach()) / norm.clamp(min=EPS)


@MODELS.register_module()
class IntraClassVariationLoss(nn.Module):
    """Match how far each position is from the centre of its class (IFVD).

    In each image, the centre of a class is the mean of its features, ``sum / (count + 1e-6)``, and
    the gradient flows through it; the loss is
    ``mean over N*H*W of (cos(S, c_S) - cos(T, c_T))^2``. An ignored position is its own centre, so
    it adds 0 but is counted. It needs about the same time and memory whether there are 2 classes
    or 150: there is no loop over them.

    Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020.

    - paper: https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php
    - code: https://github.com/YukangWang/IFVD

    Args:
        ignore_index (int): Label of the positions to ignore. Negative labels are ignored too, for
            they are no class. Default: 255.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            200, CIRKD 20. Default: 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - output: a scalar.

    Raises:
        TypeError: If an argument or, in ``forward``, the labels have the wrong type.
        ValueError: In ``forward``, if shapes do not fit.

    Example:
        >>> import torch
        >>> from mmkd_plugin.losses import IntraClassVariationLoss
        >>> criterion = IntraClassVariationLoss(loss_weight=200)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 8, 16)
        >>> labels = torch.randint(0, 19, (2, 64, 128))
        >>> loss = criterion(student, teacher, labels)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    #: What ``forward`` needs besides the maps. Read by the Distiller.
    needs: ClassVar[tuple[str, ...]] = ('labels',)
    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True

    def __init__(self, ignore_index: int = 255, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        if type(ignore_index) is not int:
            raise TypeError(f'ignore_index must be an int, got {ignore_index!r}')
        self.ignore_index = ignore_index
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps, labels: Tensor) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(intra_class_variation, labels=labels, ignore_index=self.ignore_index)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'ignore_index={self.ignore_index}, loss_weight={self.loss_weight}'
