"""Needs: what a loss can get beside the maps; it names the keyword arguments in its ``needs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.losses.overhaul import margin_from_norm


@dataclass(frozen=True)
class FromBatch:
    """One thing that a batch holds.

    Args:
        read (Callable): Takes the images ``(N, C, H, W)`` and the data samples of a batch; gives
            the value that the loss wants, or None if the batch has nothing of the kind.
        words (str): What messages call it.
    """

    read: Callable[[Tensor, list], Any]
    words: str


def segmentation_labels(inputs: Tensor, data_samples: list) -> Tensor | None:
    """The label maps of a batch, ``(N, H, W)``.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Data samples of mmseg, or of mmdet with a semantic segmentation.
    """
    if 'gt_sem_seg' not in data_samples[0]:
        return None
    maps = [sample.gt_sem_seg for sample in data_samples]
    return torch.cat([m.data if 'data' in m else m.sem_seg for m in maps])


def ground_truth_boxes(inputs: Tensor, data_samples: list) -> list[Tensor] | None:
    """The boxes of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels of the network's input.

    An image without objects has ``(0, 4)``.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Data samples of mmdet.
    """
    if 'gt_instances' not in data_samples[0]:
        return None
    boxes = [sample.gt_instances.bboxes for sample in data_samples]
    return [getattr(x, 'tensor', x).to(inputs.device) for x in boxes]


def image_size(inputs: Tensor, data_samples: list) -> tuple[int, int]:
    """Height and width of the network's input, pixels: the images and their padding.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Their data samples; not read.
    """
    return tuple(inputs.shape[2:])


#: What comes from the batch, by the name of the keyword argument.
FROM_BATCH = {
    'labels': FromBatch(segmentation_labels, 'segmentation labels'),
    'boxes': FromBatch(ground_truth_boxes, 'ground-truth boxes'),
    'image_size': FromBatch(image_size, 'the size of the images'),
}

#: What comes once and for all from the weight and the bias of the batch norm that feeds the
#: teacher's map, by the name of the keyword argument.
FROM_NORM = {'margin': margin_from_norm}


def from_batch(
    inputs: Tensor,
    data_samples: list | None,
    asking: Sequence[tuple[str, Sequence[str]]],
    batch: str = 'this batch',
) -> dict[str, Any]:
    """Reads from a batch what losses need.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list, optional): Their data samples.
        asking (Sequence[tuple]): For each loss its name in messages, and what it needs.
        batch (str): What messages call the batch. Defaults to ``'this batch'``.

    Returns:
        dict[str, Any]: By the name of the keyword argument.

    Raises:
        ValueError: If the batch lacks something.
    """
    given: dict[str, Any] = {}
    for here, needs in asking:
        for need in needs:
            source = FROM_BATCH.get(need)
            if source is None or need in given:
                continue
            given[need] = source.read(inputs, data_samples) if data_samples else None
            if given[need] is None:
                raise ValueError(f'{here} needs {source.words} (`{need}`); {batch} has none')
    return given
