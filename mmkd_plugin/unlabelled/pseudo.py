"""Pseudo-labels: what a teacher is sure of, as labels of images that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmkd_plugin.taps.example import library_of

HERE = 'unlabelled.pseudo_labels'


def label_maps(probabilities: Tensor, threshold: float, ignore_index: int) -> Tensor:
    """The class of each pixel, where it is sure enough.

    Args:
        probabilities (Tensor): ``(N, C, H, W)``; of one channel that of the second of two classes.
        threshold (float): Least probability of a class.
        ignore_index (int): The label of all other pixels.

    Returns:
        Tensor: ``(N, H, W)``, int64.

    Examples:
        >>> probabilities = torch.tensor([0.9, 0.1, 0.6, 0.4]).view(1, 2, 2, 1).transpose(1, 2)
        >>> label_maps(probabilities.reshape(1, 2, 1, 2), 0.7, 255).tolist()
        [[[0, 255]]]
    """
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([1 - probabilities, probabilities], 1)
    best, labels = probabilities.max(1)
    return labels.masked_fill(best < threshold, ignore_index)


def sure_boxes(found: InstanceData, threshold: float) -> tuple[InstanceData, InstanceData]:
    """The boxes of an image that are sure enough, and the others.

    Args:
        found (InstanceData): ``bboxes`` ``(n, 4)``, ``labels`` and ``scores`` ``(n,)``.
        threshold (float): Least score of a box.

    Returns:
        tuple[InstanceData, InstanceData]: Boxes and labels of both kinds; those without area are
        left out.
    """
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).float()
    whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
    sure = found.scores >= threshold
    made = [
        InstanceData(bboxes=boxes[chosen], labels=found.labels[chosen])
        for chosen in (whole & sure, whole & ~sure)
    ]
    return made[0], made[1]


class Labeller:
    """Turns a teacher's predictions into labels for a student.

    Args:
        student (nn.Module): A segmentor of mmseg, or a detector of mmdet with one dense head.
        teacher (nn.Module): A model of the same kind with as many classes, which predicts.
        threshold (float): Confidence below which a pixel is ignored, and a box is no object.

    Raises:
        ValueError: If the student cannot learn from such labels, or the teacher gives none.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, threshold: float) -> None:
        self.threshold = threshold
        self.library = library_of(student)
        head = _head(student, 'the student')
        if teacher is None:
            raise ValueError(
                f'{HERE}: the teacher predicts nothing by itself; take a trained model that runs '
                'beside the student (a teacher without `type`)'
            )
        theirs = _head(teacher, 'the teacher')
        if library_of(teacher) != self.library or head.num_classes != theirs.num_classes:
            raise ValueError(
                f'{HERE}: the student ({type(student).__name__}, num_classes={head.num_classes}) '
                f'cannot learn what the teacher ({type(teacher).__name__}, '
                f'num_classes={theirs.num_classes}) predicts; take a teacher of its own task and '
                'classes'
            )
        self.ignore_index = getattr(head, 'ignore_index', 255)

    def __call__(
        self, predicted: Tensor | Sequence[InstanceData], data_samples: Sequence[Any]
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """Labels a batch.

        Args:
            predicted (Tensor | Sequence[InstanceData]): Probabilities ``(N, C, H, W)`` of the
                pixels of the network's input, or the boxes of each image in it.
            data_samples (Sequence): The data samples of the batch. They are not changed.

        Returns:
            tuple[list, dict[str, Tensor]]: Data samples with labels, and how many there are: the
            share of the ``pixels``, or the ``boxes`` of an image.
        """
        samples = [sample.new() for sample in data_samples]
        if self.library == 'mmseg':
            maps = label_maps(predicted, self.threshold, self.ignore_index)
            for sample, labels in zip(samples, maps):
                height, width = sample.metainfo.get('img_shape', labels.shape)[:2]
                labels[height:], labels[:, width:] = self.ignore_index, self.ignore_index
                sample.gt_sem_seg = PixelData(data=labels[None])
            return samples, dict(pixels=(maps != self.ignore_index).float().mean())
        count = 0
        for sample, found in zip(samples, predicted):
            sure, unsure = sure_boxes(found, self.threshold)
            sample.gt_instances, sample.ignored_instances = sure, unsure
            count += len(sure)
        boxes = torch.tensor(count / max(len(samples), 1))
        return samples, dict(boxes=boxes)


def _head(model: nn.Module, owner: str) -> nn.Module:
    """The head whose classes a model predicts."""
    library, head = library_of(model), None
    if library == 'mmseg':
        head = getattr(model, 'decode_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) and len(head) else head
        head = head if hasattr(head, 'loss_decode') else None
    elif library == 'mmdet' and not hasattr(model, 'roi_head'):
        head = getattr(model, 'bbox_head', None)
        head = head if hasattr(head, 'prior_generator') else None
    if not isinstance(getattr(head, 'num_classes', None), int):
        raise ValueError(
            f'{HERE}: {owner} ({type(model).__name__}) is neither a segmentor with a decode head '
            'nor a dense detector (RetinaNet, FCOS, GFL, YOLOX, RTMDet and the like); leave it out'
        )
    return head
