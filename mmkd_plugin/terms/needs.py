"""What a loss can get beside the maps; it names the keyword arguments in its ``needs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from mmkd_plugin.losses.overhaul import margin_from_norm


@dataclass(frozen=True)
class FromBatch:
    """One thing that a batch holds.

    Args:
        read (Callable): Takes the data samples of a batch, gives what the loss wants, or None if
            the batch has nothing of the kind.
        example (Callable): Takes the height and width of a made-up image, gives the same for it.
        words (str): What messages call it.
    """

    read: Callable[[list], Any]
    example: Callable[[int], Any]
    words: str


def segmentation_labels(data_samples: list) -> Tensor | None:
    """The label maps of a batch, ``(N, H, W)``.

    Args:
        data_samples (list): Data samples of mmseg, or of mmdet with a semantic segmentation.
    """
    if 'gt_sem_seg' not in data_samples[0]:
        return None
    maps = [sample.gt_sem_seg for sample in data_samples]
    return torch.cat([m.data if 'data' in m else m.sem_seg for m in maps])


#: What comes from the batch, by the name of the keyword argument.
FROM_BATCH = {
    'labels': FromBatch(
        segmentation_labels,
        lambda size: torch.zeros(1, size, size, dtype=torch.long),
        'segmentation labels',
    ),
}

#: What comes once and for all from the weight and the bias of the batch norm that feeds the
#: teacher's map, by the name of the keyword argument.
FROM_NORM = {'margin': margin_from_norm}
