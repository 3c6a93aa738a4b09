"""Localization distillation (LD): distributions of box sides, where objects are or nearly are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.assigned import Assigned, Level, levels_of
from mmkd_plugin.losses.numerics.boxes import centre_distance, checked_boxes, distance_iou
from mmkd_plugin.losses.numerics.checks import loss_weights, one_of, weight
from mmkd_plugin.losses.numerics.checks import temperature as checked_temperature
from mmkd_plugin.losses.numerics.divergence import divergence
from mmkd_plugin.losses.numerics.maps import Maps, Weight, weighted_sum
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.registry import MODELS

#: How many of the nearest anchors of a level set the threshold of an object.
NEAREST = 9

#: The least DIoU of the valuable region, as a share of the threshold.
LEAST = 0.25


@torch.no_grad()
def valuable_region(
    priors: Sequence[Tensor], kept: Sequence[Tensor], boxes: Tensor
) -> list[Tensor]:
    """The valuable localization region: anchors near an object, but not close enough for it.

    The threshold of an object is the mean and the deviation, added up, of the IoU of the nine
    anchors of each level that are nearest to it. Its region is where DIoU is from a quarter of the
    threshold on, and below it.

    Args:
        priors (Sequence[Tensor]): Anchors of each level, (N, P, 4), in float32 or wider.
        kept (Sequence[Tensor]): Booleans, (N, P): the anchors that are not ignored.
        boxes (Tensor): Ground-truth boxes, (N, n, 4), NaN is no box.

    Returns:
        list[Tensor]: For each level (N, P): the IoU with the object, the largest one in the regions
        of several objects; 0 outside of all.
    """
    boxes = F.pad(boxes, (0, 0, 0, 1), value=torch.nan)  # so that there is one
    there = ~boxes[..., 0].isnan()
    boxes = boxes.nan_to_num(0)[:, :, None]  # (N, n, 1, 4)
    near, counted, ious, dious = [], [], [], []
    for anchors, keep in zip(priors, kept):
        iou, diou = distance_iou(boxes, anchors[:, None])  # (N, n, P)
        away = centre_distance(boxes, anchors[:, None])
        away = torch.where(keep[:, None], away, torch.inf)
        away, nearest = away.topk(min(NEAREST, anchors.shape[1]), largest=False)
        near.append(iou.gather(2, nearest))
        counted.append(away.isfinite())
        ious.append(iou)
        dious.append(diou)
    threshold = _mean_and_deviation(torch.cat(near, 2), torch.cat(counted, 2))
    regions = []
    for iou, diou, keep in zip(ious, dious, kept):
        inside = (diou >= LEAST * threshold) & (diou < threshold) & keep[:, None]
        regions.append(torch.where(inside & there[..., None], iou, 0).amax(1))
    return regions


def _mean_and_deviation(x: Tensor, counted: Tensor) -> Tensor:
    """``mean + std`` of the last dimension, unbiased, of some values; (..., 1)."""
    count = counted.sum(-1, keepdim=True)
    mean = torch.where(counted, x, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    spread = torch.where(counted, x - mean, 0).square().sum(-1, keepdim=True)
    return mean + (spread / (count - 1).clamp(min=1)).sqrt()


def box_distributions(
    student: Tensor, teacher: Tensor, weights: Tensor, tau: float, bins: str = 'mean'
) -> Tensor:
    """``sum over places of weight * k``, with k the sum over the four sides of tau^2 * KL.

    Args:
        student (Tensor): Logits of the student, (N, 4*B, H, W): B bins for each side.
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        weights (Tensor): Weight of each place, (N, H*W), in float32 or wider.
        tau (float): Temperature.
        bins (str): Whether the ``'mean'`` or the ``'sum'`` over the bins is taken. Defaults to
            ``'mean'``.

    Returns:
        Tensor: A scalar.
    """
    batch, places = weights.shape
    sides = 4 * batch, student.shape[1] // 4, places
    student, teacher = student.reshape(sides), teacher.reshape(sides)
    factor = tau**2 / (student.shape[1] if bins == 'mean' else 1)
    weights = (weights * factor)[:, None].expand(-1, 4, -1).reshape(4 * batch, 1, places)
    return divergence(student, teacher, weights, tau, dim=1)


def classes_of_positives(
    student: Tensor, teacher: Tensor, weights: Tensor, positive: Tensor, tau: float
) -> Tensor:
    """``mean over positives of tau^2 * weight * KL / C``, of a softmax over the classes.

    Args:
        student (Tensor): Logits of the student, (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        weights (Tensor): Weight of each place, (N, H*W).
        positive (Tensor): Booleans, (N, H*W).
        tau (float): Temperature.

    Returns:
        Tensor: A scalar, 0 without positives.
    """
    dtype = common_type(student, teacher)
    factor = tau**2 / (student.shape[1] * positive.sum().clamp(min=1)).to(dtype)
    weights = (torch.where(positive, weights, 0).to(dtype) * factor)[:, None]
    return divergence(student.flatten(2), teacher.flatten(2), weights, tau, dim=1)


@MODELS.register_module()
class BoxDistributionLoss(nn.Module):
    """Match the distributions of the four sides of boxes, and the classes of positives (LD).

    For detectors whose heads give a distribution for each side of a box, such as GFL. At a place,
    k is the sum over the sides of ``tau^2 * KL``. Each level adds
    ``main * sum of w k / 4`` over the positives of the student's assigner, with w the student's
    largest class probability there, without gradient; ``valuable * sum of v k / 16`` over the
    valuable localization region, with v the IoU of its anchors; and ``cls`` times the mean over the
    positives of ``cls_tau^2 * KL / C`` of a softmax over the C classes. The first two are not
    divided by a count, as in the authors' code.

    Localization Distillation for Dense Object Detection, CVPR 2022.

    - paper: https://arxiv.org/abs/2102.12252
    - code: https://github.com/HikariTJU/LD

    Args:
        tau (float): Temperature of the distributions of sides. Defaults to 10.0.
        bins (str): ``'mean'`` divides each divergence by the number of bins, as the authors' code
            does; ``'sum'`` does not. Defaults to ``'mean'``.
        main (float): Factor on the positives. Defaults to 0.25.
        valuable (float): Factor on the valuable localization region. Defaults to 0.25.
        cls (float): Factor on the classes. Defaults to 10.0.
        cls_tau (float): Temperature of the classes. Defaults to 2.0.
        loss_weight (float | list[float]): Factor on the loss, or one for each level. Defaults to
            1.0.

    Shape:
        - student: the class scores (N, C, H, W) of all levels, and then their distributions
          (N, 4*B, H, W), as a head gives them.
        - teacher: the same shapes as the student.
        - assigned: what the student's assigner found.
        - padded_boxes: (N, n, 4), x1, y1, x2, y2 in pixels, NaN where an image has fewer boxes; or
          one tensor (n, 4) for each image.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ or the maps
            are not scores and distributions.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import BoxDistributionLoss
        >>> from mmkd_plugin.losses.numerics.assigned import Assigned
        >>> corner = torch.arange(16.0).view(1, 16, 1) * 8  # one level of 4x4 places, one image
        >>> priors = torch.cat([corner, corner, corner + 32, corner + 32], 2)
        >>> labels = torch.full((1, 16), 3)
        >>> labels[0, 5] = 1  # one positive, of class 1 of three
        >>> found = Assigned([labels], [torch.ones(1, 16)], [priors], torch.ones(()), 3, None, None)
        >>> student = [torch.randn(1, c, 4, 4, requires_grad=True) for c in (3, 4 * 17)]
        >>> teacher = [torch.randn(1, c, 4, 4) for c in (3, 4 * 17)]
        >>> boxes = [torch.tensor([[36.0, 36.0, 80.0, 76.0]])]
        >>> loss = BoxDistributionLoss()(student, teacher, found, boxes)
        >>> loss.backward()
        >>> loss.shape, [x.grad.shape[1] for x in student]
        (torch.Size([]), [3, 68])
    """

    needs: ClassVar[tuple[str, ...]] = ('assigned', 'padded_boxes')
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    needs_raw_maps: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 10.0,
        bins: str = 'mean',
        main: float = 0.25,
        valuable: float = 0.25,
        cls: float = 10.0,
        cls_tau: float = 2.0,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = checked_temperature('tau', tau)
        self.bins = one_of('bins', bins, ('mean', 'sum'))
        self.main, self.valuable = weight('main', main), weight('valuable', valuable)
        self.cls, self.cls_tau = weight('cls', cls), checked_temperature('cls_tau', cls_tau)
        self.loss_weight = loss_weights(loss_weight)

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        assigned: Assigned,
        padded_boxes: Tensor | Sequence[Tensor],
    ) -> Tensor:
        """Return the weighted loss of the maps of a head."""
        levels = levels_of(student, teacher, assigned)
        for level, labels in zip(levels, assigned.labels):
            _check_distributions(level, labels.shape[1])
        first = levels[0].scores[0]
        with no_autocast(first.device.type):
            kept = [weights > 0 for weights in assigned.weights]
            boxes = checked_boxes(padded_boxes, first)
            regions = valuable_region(assigned.priors, kept, boxes)
            losses = [
                self._of_level(level, assigned.positive(i), assigned.weights[i], regions[i])
                for i, level in enumerate(levels)
            ]
        return weighted_sum(losses, self.loss_weight)

    def _of_level(self, level: Level, positive: Tensor, weights: Tensor, region: Tensor) -> Tensor:
        certain = level.scores[0].detach().amax(1).flatten(1).to(common_type(*level.boxes))
        at = torch.where(positive, certain.sigmoid() * (self.main / 4), 0)
        at = at + region.to(at.dtype) * (self.valuable / 16)
        loss = box_distributions(*level.boxes, at, self.tau, self.bins)
        classes = classes_of_positives(*level.scores, weights, positive, self.cls_tau)
        return loss + self.cls * classes

    def extra_repr(self) -> str:
        names = ('tau', 'bins', 'main', 'valuable', 'cls', 'cls_tau', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def _check_distributions(level: Level, places: int) -> None:
    """Refuses a head that gives no distributions, or several boxes at a position."""
    scores, boxes = level.scores[0].shape, level.boxes[0].shape
    if scores[2] * scores[3] != places or boxes[1] < 8:
        boxes_each = places // (scores[2] * scores[3])
        raise ValueError(
            'expected one box for each position, and a distribution for each of its sides; the '
            f'head gives {boxes_each} with {boxes[1] // boxes_each} numbers each. Take a head such '
            'as that of GFL, or ProtocolLoss'
        )
