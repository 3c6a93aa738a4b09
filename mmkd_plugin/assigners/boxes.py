"""Boxes of any kind as upright rectangles."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def upright(boxes: Any) -> Tensor:
    """The upright rectangles around boxes.

    Args:
        boxes (Tensor | BaseBoxes): Corners ``(n, 4)``, or boxes of mmdet's kinds: upright ones, or
            others that know how to become these, such as the rotated ones of mmrotate.

    Returns:
        Tensor: x1, y1, x2, y2 in pixels, ``(n, 4)``. A tensor is returned as it is.

    Examples:
        >>> import torch
        >>> upright(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[1., 2., 3., 4.]])
    """
    return boxes if isinstance(boxes, Tensor) else boxes.convert_to('hbox').tensor
