"""Needs: further arguments of a loss, which it names in its ``needs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.assigners import Sampled
from mmkd_plugin.assigners.boxes import upright
from mmkd_plugin.assigners.rois import labels_of
from mmkd_plugin.losses.numerics.assigned import Assigned
from mmkd_plugin.losses.numerics.boxes import pad_boxes
from mmkd_plugin.losses.overhaul import margin_from_norm
from mmkd_plugin.seeds import seed_of_iteration
from mmkd_plugin.views import View


@dataclass(frozen=True)
class FromBatch:
    """One argument of a loss that is read from the batch.

    Args:
        read (Callable): Takes the images ``(N, C, H, W)`` and the data samples of a batch. Returns
            the argument, or None if the batch does not have it.
        words (str): Name of the argument in messages.
        labels (bool): Whether it is made of labels. Defaults to True.
    """

    read: Callable[[Tensor, list], Any]
    words: str
    labels: bool = True


def labels_of_batch(inputs: Tensor, data_samples: list) -> Tensor | None:
    """Reads the label maps of a batch, or the class of each image.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``. They are not read.
        data_samples (list): Data samples of mmseg, of mmdet with a semantic segmentation, or of
            mmpretrain.

    Returns:
        Tensor | None: ``(N, H, W)``, ``(N,)`` of a classifier; None if the batch has no labels, or
        images with several classes.
    """
    if 'gt_label' in data_samples[0]:
        classes = [sample.gt_label for sample in data_samples]
        return torch.cat(classes) if all(len(one) == 1 for one in classes) else None
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
        input, ``(0, 4)`` for an image without objects. Those around boxes of another kind, such as
        the rotated ones of mmrotate. None if the batch has no boxes.
    """
    if 'gt_instances' not in data_samples[0]:
        return None
    boxes = [sample.gt_instances.bboxes for sample in data_samples]
    return [upright(x).to(inputs.device) for x in boxes]


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
    'labels': FromBatch(labels_of_batch, 'segmentation labels'),
    'boxes': FromBatch(ground_truth_boxes, 'ground-truth boxes'),
    'padded_boxes': FromBatch(padded_boxes, 'ground-truth boxes'),
    'image_size': FromBatch(image_size, 'the size of the images', labels=False),
}


#: Arguments of losses that are read from the run, by their name. Each function takes the name of
#: the term and the device of the maps.
FROM_RUN = {'seed': seed_of_iteration}

#: Arguments of losses that the student finds while it computes its own losses: the results of the
#: assigner of its head.
FROM_STUDENT = ('assigned',)

#: Arguments of losses that are read from the RoIs of the student, where it is these that are
#: compared: the class of each one. The background comes behind the classes.
FROM_ROIS = ('labels',)

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


def from_student(
    view: View, assigned: Mapping[View, Assigned], sampled: Mapping[int, Sampled]
) -> dict[str, Any]:
    """Reads the arguments of a loss that the student has found.

    Args:
        view (View): The view of the student by the term.
        assigned (Mapping[View, Assigned]): What its assigner found, for each view that asks for it.
        sampled (Mapping[int, Sampled]): The RoIs that it sampled, by the number of the stage.

    Returns:
        dict[str, Any]: The arguments by name.
    """
    given = {need: assigned[view] for need in FROM_STUDENT if view in assigned}
    return given | {need: labels_of(view.taps, sampled) for need in FROM_ROIS if view.rois}
