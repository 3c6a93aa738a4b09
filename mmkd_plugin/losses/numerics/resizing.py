"""Maps in another size."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.maps import Maps, as_pairs


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map in another size, bilinear; in float32 or wider if it changes.

    Args:
        x (Tensor): (N, C, H, W).
        size (Sequence[int]): Height and width.

    Returns:
        Tensor: (N, C, *size).
    """
    size = tuple(size)
    if x.shape[2:] == size:
        return x
    if not len(x):  # F.interpolate takes no empty batch
        return x.new_zeros(0, x.shape[1], *size) + x.sum()
    x = x if x.dtype.itemsize >= 4 else x.float()
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


def at_image_size(
    student: Maps, teacher: Maps, image_size: Sequence[int] | None
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The maps of both models in the size of the images.

    Args:
        student (Tensor | Sequence[Tensor]): The student's map or maps, (N, C, H, W).
        teacher (Tensor | Sequence[Tensor]): As many maps of the teacher.
        image_size (Sequence[int]): Height and width of the padded images, pixels.

    Returns:
        tuple[Sequence[Tensor], Sequence[Tensor]]: Those of the student, and of the teacher.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If there is no image size, or the numbers of maps differ.
    """
    if image_size is None:
        raise ValueError('upsample=True needs `image_size`; give it, or leave `upsample` out')
    # others, and empty ones, are refused by the loss
    fit = [
        [resized(x, image_size) if x.dim() == 4 and x.shape[2:].numel() else x for x in maps]
        for maps in as_pairs(student, teacher)
    ]
    return fit[0], fit[1]
