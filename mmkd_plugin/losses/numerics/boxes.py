"""Boxes of a batch in one tensor; how far two boxes are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes of all images in one tensor, with NaN where an image has fewer than others.

    Args:
        boxes (Sequence[Tensor]): (n, 4) for each image.

    Returns:
        Tensor: (N, n, 4) with n at least 2, for torch.compile takes 0 and 1 for special cases.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses.numerics.boxes import pad_boxes
        >>> pad_boxes([torch.zeros(3, 4), torch.zeros(0, 4)]).shape
        torch.Size([2, 3, 4])
    """
    most = max([2, *map(len, boxes)])
    rows = [
        F.pad(
            x.float() if x.dtype != torch.float64 else x, (0, 0, 0, most - len(x)), value=torch.nan
        )
        for x in boxes
    ]
    return torch.stack(rows) if rows else torch.zeros(0, most, 4)


def giou_gap(student: Tensor, teacher: Tensor, dim: int, eps: float = 0.0) -> Tensor:
    """``1 - GIoU`` of pairs of boxes.

    Args:
        student (Tensor): x1, y1, x2, y2 along ``dim``.
        teacher (Tensor): The same shape, or one that is broadcast to it.
        dim (int): The dimension of the four numbers.
        eps (float): The least area that divides. Defaults to 0.0.

    Returns:
        Tensor: The shape without ``dim``, from 0 to 2.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses.numerics.boxes import giou_gap
        >>> giou_gap(torch.tensor([0.0, 0, 2, 2]), torch.tensor([0.0, 0, 2, 1]), dim=0)
        tensor(0.5000)
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(dim)

    (low_s, high_s), (low_t, high_t) = student.chunk(2, dim), teacher.chunk(2, dim)
    shared = area(torch.maximum(low_s, low_t), torch.minimum(high_s, high_t))
    union = (area(low_s, high_s) + area(low_t, high_t) - shared).clamp(min=eps)
    around = area(torch.minimum(low_s, low_t), torch.maximum(high_s, high_t)).clamp(min=eps)
    return 1 - shared / union + (around - union) / around
