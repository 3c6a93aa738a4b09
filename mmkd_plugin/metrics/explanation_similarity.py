"""Explanation similarity: whether student and teacher see a class for the same reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.explanations import explain
from mmkd_plugin.losses.explanation import explanation_similarity
from mmkd_plugin.metrics.explanation_metric import (
    ExplanationMetric,
    in_parts,
    seen_classes,
    unpadded,
)
from mmkd_plugin.metrics.frozen_teacher import FrozenTeacher
from mmkd_plugin.metrics.table import log_per_class
from mmkd_plugin.registry import METRICS
from mmkd_plugin.taps import Taps
from mmkd_plugin.teachers.preprocessing import InputConverter


@METRICS.register_module()
class ExplanationSimilarity(ExplanationMetric):
    """The cosine of the explanations of student and teacher, from -1 to 1.

    It is one minus :class:`~mmkd_plugin.losses.ExplanationLoss` on the tested images. Both models
    explain the classes that the teacher sees in an image, at the positions where the teacher sees
    them. A pair with an all-zero map counts as 0; several maps count with their mean.

    - ``explanation/cosine``: the mean over all pairs.
    - ``explanation/mean_cosine``: the mean over the classes. A table lists the classes.

    Args:
        explainer (dict): Config of an explainer, such as ``dict(type='mmkd_plugin.GradCAM',
            scores='decode_head.conv_seg')``. Its ``max_classes`` has no effect: all classes are
            explained.
        tap (str | list[str]): The maps that explain, such as ``'backbone.layer4'``.
        teacher_tap (str | list[str], optional): The teacher's maps that explain. Defaults to None:
            the same as ``tap``.
        teacher (dict | str, optional): The teacher, as for
            :class:`~mmkd_plugin.metrics.TeacherAgreement`. Defaults to None.
        collect_device (str): ``'cpu'`` or ``'gpu'``, see mmengine's ``BaseMetric``. Defaults to
            ``'cpu'``.
        prefix (str): Text before the names of the results. Defaults to ``'explanation'``.

    Raises:
        ValueError: If an argument cannot be used, or the teacher has other classes than the data
            set.

    Examples:
        >>> test_evaluator = [
        ...     dict(type='IoUMetric', iou_metrics=['mIoU']),
        ...     dict(
        ...         type='mmkd_plugin.ExplanationSimilarity',
        ...         explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg'),
        ...         tap='backbone.layer4')]  # in a distilled config
    """

    def __init__(
        self,
        explainer: dict,
        tap: str | Sequence[str],
        teacher_tap: str | Sequence[str] | None = None,
        teacher: dict | str | None = None,
        collect_device: str = 'cpu',
        prefix: str = 'explanation',
    ) -> None:
        super().__init__(explainer, tap, collect_device, prefix)
        self.teacher_tap = self.tap if teacher_tap is None else Taps.parse(teacher_tap)
        self.teacher = FrozenTeacher(teacher, self.name)
        self.check(self.teacher.model, self.teacher_tap, 'teacher', 'the teacher')

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares the explanations of a batch.

        Args:
            data_batch (Any): A batch of the data loader.
            data_samples (Sequence[dict]): Not used: the models explain, they do not predict.
        """
        classes = self.dataset_meta['classes']
        if not self.results:
            self.teacher.check_classes(classes)
        inputs, samples = self.preprocess(data_batch)
        student, teacher = self.model, self.teacher.on(inputs.device)
        convert = InputConverter.between(student.data_preprocessor, teacher.data_preprocessor)
        taught = convert(inputs, samples)
        found = [torch.zeros(2, len(classes), dtype=torch.float64) for _ in samples]
        chosen = seen_classes(teacher, taught, samples, self.explainer, 'teacher')
        for part in in_parts(chosen):
            pair = [
                explain(model, images, samples, self.explainer, tap, part, side).maps
                for model, images, tap, side in (
                    (student, inputs, self.tap, 'student'),
                    (teacher, taught, self.teacher_tap, 'teacher'),
                )
            ]
            for i, numbers in enumerate(part.classes):
                on = numbers >= 0
                cosines = [
                    explanation_similarity(*(unpadded(x[i, on], samples[i]).double() for x in maps))
                    for maps in zip(*pair)
                ]
                at = numbers[on].cpu()
                found[i][0, at] = 1
                found[i][1, at] = torch.stack(cosines).mean(0).cpu()
        self.results += found

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Averages over the images, and logs the classes.

        Args:
            results (list[Tensor]): ``(2, classes)`` for each image.

        Returns:
            dict[str, float]: ``cosine`` and ``mean_cosine``.
        """
        pairs, cosines = torch.stack(results).sum(0)
        per_class = cosines / pairs
        columns = {'cosine': per_class, 'images': pairs.long()}
        log_per_class('Explanations of student and teacher', self.dataset_meta['classes'], columns)
        return dict(
            cosine=float(cosines.sum() / pairs.sum()), mean_cosine=float(per_class.nanmean())
        )
