"""Boxes of a batch in one tensor."""

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
