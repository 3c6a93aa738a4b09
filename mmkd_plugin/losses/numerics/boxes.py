"""Boxes: those of a batch in one tensor, and how much two of them overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Areas of boxes are at least that, so that nothing is divided by 0.
TINY = 1e-12

#: The smallest IoU that a logarithm is taken of.
SMALLEST_IOU = 1e-6


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


def checked_boxes(boxes: Tensor | Sequence[Tensor], like: Tensor) -> Tensor:
    """The boxes of a batch as (N, n, 4), in float32 or wider, on the device of a map.

    Args:
        boxes (Tensor | Sequence[Tensor]): (N, n, 4), or (n, 4) for each image.
        like (Tensor): A map of the student.

    Returns:
        Tensor: (N, n, 4), NaN where an image has fewer boxes than others.

    Raises:
        ValueError: If there are not as many images as in the map, or a tensor has another form.
    """
    if isinstance(boxes, Tensor):  # going through it would be one graph for each number of images
        shapes, fit = tuple(boxes.shape), boxes.dim() == 3 and boxes.shape[2] == 4
    else:
        shapes = [tuple(x.shape) for x in boxes]
        fit = all(len(shape) == 2 and shape[1] == 4 for shape in shapes)
    if len(boxes) != like.shape[0] or not fit:
        raise ValueError(
            f'boxes do not fit the maps: boxes {shapes}, student {tuple(like.shape)}; give one '
            'tensor (n, 4) per image, (0, 4) for an image without objects'
        )
    boxes = boxes if isinstance(boxes, Tensor) else pad_boxes(boxes)
    return boxes.to(like.device, torch.promote_types(like.dtype, torch.float32))


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of intersection and union of boxes; one that is turned inside out has no area.

    Args:
        a (Tensor): (..., 4), x1, y1, x2, y2, in float32 or wider.
        b (Tensor): (..., 4), to be broadcast with the others.

    Returns:
        tuple[Tensor, Tensor]: (...) each. The union is above 0, if only a little.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (a, b)]
    return intersection, (areas[0] + areas[1] - intersection).clamp(min=TINY)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """``IoU - (share of the smallest box around both that neither covers)``, from -1 to 1.

    Args:
        a (Tensor): (..., 4), x1, y1, x2, y2, in float32 or wider.
        b (Tensor): (..., 4), to be broadcast with the others.

    Returns:
        Tensor: (...).

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses.numerics.boxes import generalised_iou
        >>> whole, half = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 2]])
        >>> generalised_iou(whole, whole).item(), generalised_iou(whole, half).item()
        (1.0, 0.5)
    """
    intersection, union = overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    around = (high - low).clamp(min=0).prod(-1).clamp(min=TINY)
    return intersection / union - (around - union) / around


def log_iou(a: Tensor, b: Tensor) -> Tensor:
    """``log(IoU)``, of an IoU of at least 1e-6, so that boxes without overlap are finite.

    Args:
        a (Tensor): (..., 4), x1, y1, x2, y2, in float32 or wider.
        b (Tensor): (..., 4), to be broadcast with the others.

    Returns:
        Tensor: (...), 0 or below.
    """
    intersection, union = overlap(a, b)
    return (intersection / union).clamp(min=SMALLEST_IOU).log()


def centre_distance(a: Tensor, b: Tensor) -> Tensor:
    """The squared distance of the centres of boxes.

    Args:
        a (Tensor): (..., 4), x1, y1, x2, y2.
        b (Tensor): (..., 4), to be broadcast with the others.

    Returns:
        Tensor: (...).
    """
    return ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)


def distance_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The IoU, and the IoU less the squared distance of the centres in diagonals around both.

    Args:
        a (Tensor): (..., 4), x1, y1, x2, y2, in float32 or wider.
        b (Tensor): (..., 4), to be broadcast with the others.

    Returns:
        tuple[Tensor, Tensor]: IoU and DIoU, (...) each.
    """
    intersection, union = overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    iou = intersection / union
    return iou, iou - centre_distance(a, b) / (high - low).square().sum(-1).clamp(min=TINY)
