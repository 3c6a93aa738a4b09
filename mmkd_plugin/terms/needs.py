"""Needs: further arguments of a loss, which it names in its ``needs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.boxes import pad_boxes
from mmkd_plugin.losses.overhaul import margin_from_norm
from mmkd_plugin.seeds import seed_of_iteration
from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.assignment import Assignment, Assignments, around


@dataclass(frozen=True)
class FromBatch:
    """One argument of a loss that is read from the batch.

    Args:
        read (Callable): Takes the images ``(N, C, H, W)`` and the data samples of a batch. Returns
            the argument, or None if the batch does not have it.
        words (str): Name of the argument in messages.
    """

    read: Callable[[Tensor, list], Any]
    words: str


def segmentation_labels(inputs: Tensor, data_samples: list) -> Tensor | None:
    """Reads the label maps of a batch.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``. They are not read.
        data_samples (list): Data samples of mmseg, or of mmdet with a semantic segmentation.

    Returns:
        Tensor | None: ``(N, H, W)``, None if the batch has no label maps.
    """
    if 'gt_sem_seg' not in data_samples[0]:
        return None
    maps = [sample.gt_sem_seg for sample in data_samples]
    return torch.cat([m.data if 'data' in m else m.sem_seg for m in maps])


def ground_truth_boxes(inputs: Tensor, data_samples: list) -> list[Tensor] | None:
    """Reads the ground-truth boxes of each image.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Data samples of mmdet.

    Returns:
        list[Tensor] | None: ``(n, 4)`` for each image: x1, y1, x2, y2 in pixels of the network's
        input, ``(0, 4)`` for an image without objects. None if the batch has no boxes.
    """
    if 'gt_instances' not in data_samples[0]:
        return None
    boxes = [sample.gt_instances.bboxes for sample in data_samples]
    return [getattr(x, 'tensor', x).to(inputs.device) for x in boxes]


def padded_boxes(inputs: Tensor, data_samples: list) -> Tensor | None:
    """Reads the ground-truth boxes of all images into one tensor.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Data samples of mmdet.

    Returns:
        Tensor | None: ``(N, n, 4)`` with NaN where an image has fewer boxes than others, and n at
        least 2. None if the batch has no boxes.
    """
    boxes = ground_truth_boxes(inputs, data_samples)
    return None if boxes is None else pad_boxes(boxes)


def image_size(inputs: Tensor, data_samples: list) -> tuple[int, int]:
    """Returns the size of the network's input: the images and their padding.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list): Their data samples. They are not read.

    Returns:
        tuple[int, int]: Height and width, pixels.
    """
    return tuple(inputs.shape[2:])


#: Arguments of losses that are read from each batch, by their name.
FROM_BATCH = {
    'labels': FromBatch(segmentation_labels, 'segmentation labels'),
    'boxes': FromBatch(ground_truth_boxes, 'ground-truth boxes'),
    'padded_boxes': FromBatch(padded_boxes, 'ground-truth boxes'),
    'image_size': FromBatch(image_size, 'the size of the images'),
}


#: Arguments of losses that are read from the run, by their name. Each function takes the name of
#: the term and the device of the maps.
FROM_RUN = {'seed': seed_of_iteration}

#: Arguments of losses that are read from what the student's own loss did with a batch, by their
#: name: weights of labels, and the number of locations with an object, over all processes.
FROM_STUDENT: dict[str, Callable[[Assignment], Any]] = {
    'label_weights': lambda assignment: assignment.label_weights,
    'positives': lambda assignment: assignment.positives,
}


def from_student(found: Assignments, tap: Tap, here: str, needs: Sequence[str]) -> dict[str, Any]:
    """Reads the arguments that a loss needs from the student's own loss.

    Args:
        found (Mapping[str, Assignment]): How each head of the student used its locations.
        tap (Tap): The tap in the student: the head around it counts.
        here (str): Name of the loss in messages.
        needs (Sequence[str]): The ``needs`` of the loss. Others are skipped.

    Returns:
        dict[str, Any]: The arguments by name.

    Raises:
        ValueError: If the student has no such head.
    """
    asked = [need for need in needs if need in FROM_STUDENT]
    if not asked:
        return {}
    assignment = around(found, tap)
    if assignment is None:
        raise ValueError(
            f"{here} needs what the student's own loss does with each location "
            f"(`{'`, `'.join(asked)}`), and no dense head of mmdet around '{tap}' ran its loss"
        )
    assignment = assignment.reduced()
    return {need: FROM_STUDENT[need](assignment) for need in asked}


#: Arguments of losses that are computed from the weight and the bias of the batch norm that feeds
#: the teacher's map, by their name.
FROM_NORM = {'margin': margin_from_norm}


def from_batch(
    inputs: Tensor,
    data_samples: list | None,
    asking: Sequence[tuple[str, Sequence[str]]],
    batch: str = 'this batch',
) -> dict[str, Any]:
    """Reads the arguments that losses need from a batch.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``.
        data_samples (list, optional): Their data samples.
        asking (Sequence[tuple[str, Sequence[str]]]): The name in messages and the ``needs`` of each
            loss. Needs that do not come from a batch are skipped.
        batch (str): Name of the batch in messages. Defaults to ``'this batch'``.

    Returns:
        dict[str, Any]: The arguments by name.

    Raises:
        ValueError: If the batch does not have one of them.
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
