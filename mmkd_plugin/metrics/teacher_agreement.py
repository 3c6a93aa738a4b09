"""Teacher agreement: how often student and teacher predict the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmkd_plugin.metrics.frozen_teacher import FrozenTeacher
from mmkd_plugin.metrics.table import log_per_class, percent
from mmkd_plugin.registry import METRICS


def agreement_counts(
    student: Tensor, teacher: Tensor, num_classes: int, counted: Tensor | None = None
) -> Tensor:
    """Counts the pixels of each class in two label maps.

    Args:
        student (Tensor): Predicted classes ``(H, W)``.
        teacher (Tensor): Predicted classes ``(H, W)``.
        num_classes (int): Number of classes, C.
        counted (Tensor, optional): The pixels that count, ``(H, W)``, bool. Defaults to None: all.

    Returns:
        Tensor: ``(3, C)``, int64: for each class the pixels of both label maps, of the student's
        and of the teacher's.

    Raises:
        ValueError: If the label maps differ in size.

    Examples:
        >>> import torch
        >>> agreement_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]), 2)
        tensor([[1, 1],
                [1, 2],
                [2, 1]])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'a label map of {tuple(student.shape)} cannot be compared with one of '
            f'{tuple(teacher.shape)}'
        )
    if counted is not None:
        student, teacher = student[counted], teacher[counted]
    both = student[student == teacher]
    return torch.stack(
        [labels.flatten().bincount(minlength=num_classes) for labels in (both, student, teacher)]
    )


def matched_boxes(
    student: Tensor, student_labels: Tensor, teacher: Tensor, teacher_labels: Tensor, iou_thr: float
) -> Tensor:
    """Pairs boxes of the same class one to one, with as many pairs as possible.

    Args:
        student (Tensor): Boxes ``(S, 4)``, x1, y1, x2, y2 in pixels.
        student_labels (Tensor): Their classes ``(S,)``.
        teacher (Tensor): Boxes ``(T, 4)``.
        teacher_labels (Tensor): Their classes ``(T,)``.
        iou_thr (float): Least intersection over union of a pair.

    Returns:
        Tensor: The class of each pair, ``(M,)``.
    """
    from mmdet.structures.bbox import bbox_overlaps  # only the test of a detector needs mmdet
    from scipy.optimize import linear_sum_assignment

    pairs = bbox_overlaps(student, teacher) >= iou_thr
    pairs &= student_labels[:, None] == teacher_labels
    rows, columns = linear_sum_assignment(pairs.cpu().numpy(), maximize=True)
    matched = pairs[rows, columns]
    return student_labels[rows][matched]


def counts_of(
    student: dict,
    teacher: dict,
    num_classes: int,
    score_thr: float = 0.3,
    iou_thr: float = 0.5,
    ignore_index: int | None = 255,
) -> Tensor:
    """Counts what student and teacher predict alike in an image.

    Args:
        student (dict): The data sample with the student's predictions.
        teacher (dict): The teacher's predictions: a label map, or boxes.
        num_classes (int): Number of classes, C.
        score_thr (float): Score from which a box is confident. Defaults to 0.3.
        iou_thr (float): Least intersection over union of two boxes that match. Defaults to 0.5.
        ignore_index (int, optional): Label of the ground truth whose pixels do not count; None
            counts all pixels. Defaults to 255.

    Returns:
        Tensor: ``(3, C)``, int64: for each class the pixels or confident boxes that both have, that
        the student has, and that the teacher has.
    """
    if kind_of(student) == 'pred_sem_seg':
        counted = None
        if ignore_index is not None and 'gt_sem_seg' in student:
            counted = student['gt_sem_seg']['data'].squeeze(0) != ignore_index
        maps = (student['pred_sem_seg']['data'], teacher['data'])
        ours, theirs = (labels.squeeze(0).long() for labels in maps)
        return agreement_counts(ours, theirs, num_classes, counted)
    found = student['pred_instances']
    s, t = (one['scores'] >= score_thr for one in (found, teacher))
    ours, theirs = found['labels'][s], teacher['labels'][t]
    both = matched_boxes(found['bboxes'][s], ours, teacher['bboxes'][t], theirs, iou_thr)
    return torch.stack([one.bincount(minlength=num_classes) for one in (both, ours, theirs)])


def shares_of(counts: Sequence[Tensor], kind: str) -> dict[str, float]:
    """The shares of all pixels, or of all confident boxes.

    Args:
        counts (Sequence[Tensor]): :func:`counts_of` of each image.
        kind (str): :func:`kind_of` their predictions.

    Returns:
        dict[str, float]: ``pixel``, or ``found`` and ``confirmed``, in percent; NaN is of nothing.

    Examples:
        >>> shares_of([torch.tensor([[3, 0], [3, 1], [4, 0]])], 'pred_instances')
        {'found': 75.0, 'confirmed': 75.0}
    """
    both, student, teacher = torch.stack(list(counts)).sum((0, 2))
    found = float(percent(both, teacher))
    if kind == 'pred_sem_seg':
        return dict(pixel=found)
    return dict(found=found, confirmed=float(percent(both, student)))


@METRICS.register_module()
class TeacherAgreement(BaseMetric):
    """How often the tested model and its teacher predict the same, in percent.

    Segmentation:

    - ``agreement/pixel``: the share of the pixels with the same class.
    - ``agreement/mean_found``: the share of the teacher's pixels of a class where the student
      predicts that class too, averaged over the classes that the teacher predicts.
    - ``agreement/mean_confirmed``: the same with student and teacher exchanged.

    Detection:

    - ``agreement/found``: the share of the teacher's confident boxes that match a confident box of
      the student, of the same class and one to one.
    - ``agreement/confirmed``: the share of the student's confident boxes that match one of the
      teacher.
    - ``agreement/mean_found``, ``agreement/mean_confirmed``: the two averaged over the classes.

    A share of nothing is NaN and does not count in a mean. A table lists the classes.

    The teacher sees the same images (after the resize of the test pipeline) through its own data
    preprocessor. The predictions are compared at the size of the original image.

    Good Teachers Explain: Explanation-Enhanced Knowledge Distillation, ECCV 2024 (this measure, for
    image classification).

    - paper: https://arxiv.org/abs/2402.03119
    - code: https://github.com/m-parchami/GoodTeachersExplain

    Args:
        teacher (dict | str, optional): ``config``, ``checkpoint`` and ``strict`` of a
            :class:`~mmkd_plugin.teachers.Teacher`, or the name of one of several teachers
            of a distilled config. Defaults to None: ``tools/test.py`` takes the teacher of the
            distilled config.
        score_thr (float): Score from which a box is confident. Defaults to 0.3.
        iou_thr (float): Least intersection over union of two boxes that match. Defaults to 0.5.
        ignore_index (int, optional): Label of the ground truth whose pixels do not count; None
            counts all pixels. Defaults to 255.
        collect_device (str): ``'cpu'`` or ``'gpu'``, see mmengine's ``BaseMetric``. Defaults to
            ``'cpu'``.
        prefix (str): Text before the names of the results. Defaults to ``'agreement'``.

    Raises:
        ValueError: If there is no usable teacher, or it has other classes than the data set.

    Examples:
        >>> test_evaluator = [
        ...     dict(type='IoUMetric', iou_metrics=['mIoU']),
        ...     dict(type='mmkd_plugin.TeacherAgreement')]  # in a distilled config
    """

    def __init__(
        self,
        teacher: dict | str | None = None,
        score_thr: float = 0.3,
        iou_thr: float = 0.5,
        ignore_index: int | None = 255,
        collect_device: str = 'cpu',
        prefix: str = 'agreement',
    ) -> None:
        super().__init__(collect_device, prefix)
        self.settings = dict(score_thr=score_thr, iou_thr=iou_thr, ignore_index=ignore_index)
        self.teacher = FrozenTeacher(teacher, type(self).__name__)
        self._kind = ''

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares the predictions for the images of a batch.

        Args:
            data_batch (Any): A batch of the data loader.
            data_samples (Sequence[dict]): The data samples with the student's predictions.
        """
        classes = self.dataset_meta['classes']
        self._kind = kind = kind_of(data_samples[0])
        if not self.results:
            self.teacher.check_classes(classes)
        first = data_samples[0][kind]
        device = (first['data'] if kind == 'pred_sem_seg' else first['bboxes']).device
        taught = self.teacher.predict(data_batch, device)
        for student, teacher in zip(data_samples, taught):
            counts = counts_of(student, teacher[kind], len(classes), **self.settings)
            self.results.append(counts.cpu())

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Sums over the images, and logs the classes.

        Args:
            results (list[Tensor]): ``(3, classes)`` for each image.

        Returns:
            dict[str, float]: ``pixel``, ``mean_found`` and ``mean_confirmed``, or ``found``,
            ``confirmed``, ``mean_found`` and ``mean_confirmed``, in percent.
        """
        both, student, teacher = torch.stack(results).sum(0)
        found, confirmed = percent(both, teacher), percent(both, student)
        log_per_class(
            'Agreement with the teacher, %',
            self.dataset_meta['classes'],
            {'found': found, 'confirmed': confirmed},
        )
        means = dict(mean_found=found.nanmean(), mean_confirmed=confirmed.nanmean())
        return shares_of(results, self._kind) | {name: float(mean) for name, mean in means.items()}


def kind_of(sample: dict) -> str:
    """The key of the predictions to compare in a data sample.

    Raises:
        ValueError: If it has neither label maps nor boxes.
    """
    for kind in ('pred_sem_seg', 'pred_instances'):
        if kind in sample:
            return kind
    raise ValueError(
        'TeacherAgreement compares label maps (pred_sem_seg) or boxes (pred_instances); the model '
        f'gives {", ".join(key for key in sample if key.startswith("pred"))}'
    )
