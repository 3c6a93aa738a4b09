"""Explanation localization: whether the explanation of a class lies on objects of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.explanations import BcosWeights, explain
from mmkd_plugin.losses.numerics.checks import finite_number
from mmkd_plugin.metrics.explanation_metric import (
    ExplanationMetric,
    in_parts,
    seen_classes,
    unpadded,
)
from mmkd_plugin.metrics.table import log_per_class, percent
from mmkd_plugin.registry import METRICS
from mmkd_plugin.taps import TapReader


def energy_pointing_game(attribution: Tensor, region: Tensor) -> Tensor:
    """The share of the positive attribution that lies in a region (EPG).

    Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPR 2020
    workshops.

    - paper: https://arxiv.org/abs/1910.01279

    Args:
        attribution (Tensor): ``(..., H, W)``.
        region (Tensor): ``(..., H, W)``, bool.

    Returns:
        Tensor: ``(...)``, from 0 to 1; NaN where nothing is positive.

    Examples:
        >>> import torch
        >>> attribution = torch.tensor([[3.0, 1.0], [-5.0, 0.0]])
        >>> energy_pointing_game(attribution, torch.tensor([[True, False], [True, True]]))
        tensor(0.7500)
    """
    energy = attribution.clamp(min=0)
    return (energy * region).sum((-2, -1)) / energy.sum((-2, -1))


def attribution_iou(attribution: Tensor, region: Tensor, threshold: float) -> Tensor:
    """Intersection over union of a region and the strongest attribution.

    Args:
        attribution (Tensor): ``(..., H, W)``.
        region (Tensor): ``(..., H, W)``, bool.
        threshold (float): Share of the largest value from which attribution is strong, 0 to 1.

    Returns:
        Tensor: ``(...)``, from 0 to 1; NaN where nothing is positive.

    Examples:
        >>> import torch
        >>> attribution = torch.tensor([[3.0, 1.0], [-5.0, 2.0]])
        >>> attribution_iou(attribution, torch.tensor([[True, False], [True, True]]), 0.5)
        tensor(0.6667)
    """
    largest = attribution.amax((-2, -1), keepdim=True)
    strong = attribution >= threshold * largest
    iou = (strong & region).sum((-2, -1)) / (strong | region).sum((-2, -1))
    return torch.where(largest[..., 0, 0] > 0, iou, torch.nan)


@METRICS.register_module()
class ExplanationLocalization(ExplanationMetric):
    """The share of the tested model's explanations that lies on the explained objects, in percent.

    An image is explained for each class that is in its ground truth and that the model sees, by the
    sum of the class's scores over the positions where the model sees the class. The region of the
    class is its part of the label map, or the union of its boxes.

    - ``localization/epg``: the energy pointing game.
    - ``localization/iou``: intersection over union of the region and the attribution from
      ``threshold`` of its maximum on.
    - ``localization/explained``: the share of the classes of an image that have an explanation. The
      others (not seen, or with all-zero maps) do not count in the first two.

    The first two are means over the images of a class, then over the classes. A table lists the
    classes. Its column ``area`` is the share of the image that the regions cover: the EPG of an
    attribution that is the same everywhere.

    Good Teachers Explain: Explanation-Enhanced Knowledge Distillation, ECCV 2024 (these measures,
    for image classification).

    - paper: https://arxiv.org/abs/2402.03119
    - code: https://github.com/m-parchami/GoodTeachersExplain

    Args:
        explainer (dict): Config of an explainer, such as ``dict(type='mmkd_plugin.GradCAM',
            scores='decode_head.conv_seg')``. Its ``max_classes`` has no effect: all classes are
            explained.
        tap (str | list[str]): The maps that explain, such as ``'backbone.layer4'``. The
            attribution of several maps is their sum, that of ``BcosWeights`` the weights times the
            values of the map.
        threshold (float): Share of the largest attribution from which attribution counts for the
            intersection over union. Defaults to 0.15, as in the Grad-CAM paper.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.
        collect_device (str): ``'cpu'`` or ``'gpu'``, see mmengine's ``BaseMetric``. Defaults to
            ``'cpu'``.
        prefix (str): Text before the names of the results. Defaults to ``'localization'``.

    Raises:
        TypeError: If ``threshold`` is not a number.
        ValueError: If an argument cannot be used, or the test pipeline loads no annotations.

    Examples:
        >>> test_evaluator = [
        ...     dict(type='IoUMetric', iou_metrics=['mIoU']),
        ...     dict(
        ...         type='mmkd_plugin.ExplanationLocalization',
        ...         explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg'),
        ...         tap='backbone.layer4')]
    """

    def __init__(
        self,
        explainer: dict,
        tap: str | Sequence[str],
        threshold: float = 0.15,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str = 'localization',
    ) -> None:
        super().__init__(explainer, tap, collect_device, prefix)
        if not 0 < finite_number('threshold', threshold) <= 1:
            raise ValueError(f'threshold must be above 0 and at most 1, got {threshold!r}')
        self.threshold, self.ignore_index = threshold, ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Explains the classes of a batch.

        Args:
            data_batch (Any): A batch of the data loader.
            data_samples (Sequence[dict]): The data samples with predictions and ground truth.
        """
        model, num_classes = self.model, len(self.dataset_meta['classes'])
        inputs, samples = self.preprocess(data_batch)
        truth = [
            regions_of(sample, num_classes, self.ignore_index, inputs.device)
            for sample in data_samples
        ]
        present = torch.stack([regions.flatten(1).any(1) for regions, _ in truth])
        found = [present.new_zeros(5, num_classes, dtype=torch.float64) for _ in truth]
        for numbers, (regions, counted) in zip(found, truth):
            numbers[0] = regions.flatten(1).any(1)
            numbers[4] = regions.flatten(1).sum(1) / counted.sum()
        chosen = seen_classes(model, inputs, samples, self.explainer, among=present)
        for part in in_parts(chosen):
            explained = explain(model, inputs, samples, self.explainer, self.tap, part)
            attribution = self._attribution(explained.maps, inputs, samples)
            for i, classes in enumerate(part.classes):
                on = classes[classes >= 0]
                regions, counted = truth[i]
                maps = unpadded(attribution[i, classes >= 0], samples[i])
                found[i][1:4, on] = self._measure(maps, regions[on], counted)
        self.results += [numbers.cpu() for numbers in found]

    def _attribution(self, maps: list[Tensor], inputs: Tensor, samples: list) -> Tensor:
        """What each position adds to a score, ``(N, K, H, W)``."""
        if isinstance(self.explainer, BcosWeights):  # weights: multiply them by their inputs
            with TapReader(self.model, self.tap) as reader:
                self.model(inputs, samples, mode='tensor')
            size = inputs.shape[2:]
            maps = [
                weights * F.interpolate(x, size, mode='bilinear', align_corners=False)[:, None]
                for weights, tap in zip(maps, self.tap)
                for x in [reader.read(tap)]
            ]
        return sum(x.sum(2) for x in maps)

    def _measure(self, maps: Tensor, regions: Tensor, counted: Tensor) -> Tensor:
        """Whether there is an explanation, EPG and IoU, ``(3, K)``."""
        maps = F.interpolate(
            maps[None].double(), size=counted.shape, mode='bilinear', align_corners=False
        )[0]
        maps = maps * counted
        numbers = torch.stack(
            [
                maps.amax((1, 2)) > 0,
                energy_pointing_game(maps, regions),
                attribution_iou(maps, regions, self.threshold),
            ]
        )
        return numbers.nan_to_num(0)

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Averages over the images, and logs the classes.

        Args:
            results (list[Tensor]): ``(5, classes)`` for each image.

        Returns:
            dict[str, float]: ``epg``, ``iou`` and ``explained``, in percent.
        """
        present, explained, epg, iou, area = torch.stack(results).sum(0)
        columns = {
            'EPG': percent(epg, explained),
            'IoU': percent(iou, explained),
            'explained': percent(explained, present),
            'area': percent(area, present),
        }
        log_per_class('Localization of explanations, %', self.dataset_meta['classes'], columns)
        return dict(
            epg=float(columns['EPG'].nanmean()),
            iou=float(columns['IoU'].nanmean()),
            explained=float(percent(explained.sum(), present.sum())),
        )


def regions_of(
    sample: dict, num_classes: int, ignore_index: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Finds the regions of the classes of the ground truth.

    Args:
        sample (dict): A data sample with ``gt_sem_seg``, or with ``gt_instances`` in pixels of the
            original image.
        num_classes (int): Number of classes, C.
        ignore_index (int): Label of the pixels that do not count.
        device (torch.device): Device of the results.

    Returns:
        tuple[Tensor, Tensor]: The regions ``(C, H, W)``, bool, and the pixels that count,
        ``(H, W)``, bool.

    Raises:
        ValueError: If there is no ground truth.
    """
    classes = torch.arange(num_classes, device=device)
    if 'gt_sem_seg' in sample:
        labels = sample['gt_sem_seg']['data'].squeeze(0).to(device)
        counted = labels != ignore_index
        return (labels == classes[:, None, None]) & counted, counted
    if 'gt_instances' not in sample or 'bboxes' not in sample['gt_instances']:
        raise ValueError(
            'ExplanationLocalization needs the ground truth of the images: LoadAnnotations in the '
            'pipeline of the test data'
        )
    boxes, labels = (sample['gt_instances'][key].to(device) for key in ('bboxes', 'labels'))
    boxes = getattr(boxes, 'tensor', boxes)
    height, width = sample['ori_shape'][:2]
    y = torch.arange(height, device=device)[:, None] + 0.5
    x = torch.arange(width, device=device) + 0.5
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)  # (boxes, H, W)
    regions = torch.zeros(num_classes, height, width, dtype=torch.bool, device=device)
    for label in labels.unique():
        regions[label] = inside[labels == label].any(0)
    return regions, torch.ones(height, width, dtype=torch.bool, device=device)
