"""Cross-head distillation (CrossKD): the teacher's head on the student's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.boxes import giou_gap
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of, weight
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, weighted_sum
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.registry import MODELS

#: Logarithm of the largest factor between the sides of an anchor and of its box, as in mmdet.
LARGEST_STEP = 4.135166556742356  # log(1000 / 16)


def class_scores(x: Tensor, anchors: int) -> Tensor:
    """``(N, A*K, H, W)`` as ``(N, A, K, H, W)``."""
    return x.unflatten(1, (anchors, -1))


def focal_difference(student: Tensor, teacher: Tensor, weights: Tensor, beta: float) -> Tensor:
    """``sum of w * abs(p_S - p_T)^beta * BCE(S, p_T)``, with p the sigmoid of a score.

    Args:
        student (Tensor): Scores that came out of the teacher for the student, (N, A, K, H, W).
        teacher (Tensor): The teacher's own scores, same shape.
        weights (Tensor): w, (N, A, 1, H, W).
        beta (float): Exponent.

    Returns:
        Tensor: A scalar.
    """
    target = teacher.sigmoid()
    gap = (student.sigmoid() - target).abs()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction='none')
    return (weights * (gap if beta == 1 else gap**beta) * entropy).sum()


def confidence(teacher: Tensor) -> Tensor:
    """The highest probability of a class at each anchor, of (N, A, K, H, W): (N, A, H, W)."""
    return teacher.amax(2).sigmoid()


def bins_apart(student: Tensor, teacher: Tensor, anchors: int) -> Tensor:
    """The divergence of the distributions of a box's sides, summed over bins and sides.

    Args:
        student (Tensor): Logits of the bins, (N, A*4*(n+1), H, W).
        teacher (Tensor): The same of the teacher.
        anchors (int): A.

    Returns:
        Tensor: KL(T || S), (N, A, H, W).
    """
    s, t = (x.unflatten(1, (anchors, 4, -1)).log_softmax(3) for x in (student, teacher))
    return F.kl_div(s, t, reduction='none', log_target=True).sum((2, 3))


def corners(deltas: Tensor, stds: Sequence[float]) -> Tensor:
    """Boxes in units of their anchors, with the anchor's centre as the origin.

    Args:
        deltas (Tensor): dx, dy, dw, dh for each anchor, (N, A, 4, H, W).
        stds (Sequence[float]): Factors on them.

    Returns:
        Tensor: x1, y1, x2, y2 of the same shape.
    """
    deltas = deltas * deltas.new_tensor(stds).view(4, 1, 1)
    centre, half = deltas[:, :, :2], deltas[:, :, 2:].clamp(-LARGEST_STEP, LARGEST_STEP).exp() / 2
    return torch.cat([centre - half, centre + half], 2)


def boxes_apart(student: Tensor, teacher: Tensor, anchors: int, stds: Sequence[float]) -> Tensor:
    """``1 - GIoU`` of the boxes that two maps of deltas give at each anchor.

    The anchor itself does not matter: the ratio of areas is the same in its units.

    Args:
        student (Tensor): Deltas, (N, A*4, H, W).
        teacher (Tensor): The same of the teacher.
        anchors (int): A.
        stds (Sequence[float]): Factors on dx, dy, dw, dh.

    Returns:
        Tensor: (N, A, H, W).
    """
    s, t = (corners(x.unflatten(1, (anchors, 4)), stds) for x in (student, teacher))
    return giou_gap(s, t, dim=2)


@MODELS.register_module()
class CrossHeadLoss(nn.Module):
    """Match what the teacher's head makes of the student's features with its own output (CrossKD).

    Scores: the cross-entropy to the teacher's probabilities, weighted by their distance. Boxes: the
    divergence of distributions (GFL), or ``1 - GIoU`` of decoded boxes (RetinaNet), weighted by
    the teacher's highest probability at the place. The term has a ``through``, and its taps give
    the scores of all levels first, and then the boxes of all levels.

    CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024.

    - paper: https://arxiv.org/abs/2306.11369
    - code: https://github.com/jbwang1997/CrossKD

    Args:
        boxes (str): ``'bins'``: the logits of a distribution for each side of a box. Their weighted
            mean counts. ``'deltas'``: the four numbers of a box relative to its anchor. Their
            weighted sum is divided by the number of positives, as the scores are. Defaults to
            ``'bins'``.
        beta (float): Exponent of the distance of probabilities, at least 1. Defaults to 1.0.
        cls_weight (float): Factor on the scores. Defaults to 1.0.
        box_weight (float): Factor on the boxes; 1 for RetinaNet. Defaults to 4.0.
        stds (Sequence[float]): ``target_stds`` of the head's box coder, for deltas. Defaults to
            ``(1.0, 1.0, 1.0, 1.0)``.
        loss_weight (float | list[float]): Factor on the loss, or one for each level. Defaults to
            1.0.

    Shape:
        - student: for each level scores (N, A*K, H, W), and then for each level boxes
          (N, A*4, H, W), or (N, A*4*(n+1), H, W) for bins.
        - teacher: the same shapes as the student.
        - label_weights: (N, H*W*A) for each level, 0 where the student's own loss ignores the
          place. None counts all of them.
        - positives: a scalar, the number of places with an object. None is 1.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ or do not
            fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import CrossHeadLoss
        >>> criterion = CrossHeadLoss(boxes='deltas', box_weight=1)
        >>> student = [torch.randn(2, 5, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8)]
        >>> teacher = [torch.randn(2, 5, 8, 8), torch.randn(2, 4, 8, 8)]
        >>> loss = criterion(student, teacher, [torch.ones(2, 64)], torch.tensor(3.0))
        >>> loss.backward()
        >>> loss.shape, student[0].grad.shape
        (torch.Size([]), torch.Size([2, 5, 8, 8]))
    """

    needs: ClassVar[tuple[str, ...]] = ('label_weights', 'positives')
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        boxes: str = 'bins',
        beta: float = 1.0,
        cls_weight: float = 1.0,
        box_weight: float = 4.0,
        stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.boxes = one_of('boxes', boxes, ('bins', 'deltas'))
        self.beta = weight('beta', beta)
        if beta < 1:  # else the slope has no limit where both agree
            raise ValueError(f'beta must be at least 1, got {beta!r}')
        self.cls_weight, self.box_weight = (
            weight('cls_weight', cls_weight),
            weight('box_weight', box_weight),
        )
        if not cls_weight and not box_weight:
            raise ValueError('cls_weight and box_weight are both 0: nothing is left of the loss')
        if not isinstance(stds, (list, tuple)) or len(stds) != 4:
            raise ValueError(f'stds must be four numbers above 0, got {stds!r}')
        self.stds = tuple(weight('stds', one) for one in stds)
        self.loss_weight = loss_weights(loss_weight)

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        label_weights: Sequence[Tensor] | None = None,
        positives: Tensor | float | None = None,
    ) -> Tensor:
        """Return the weighted loss of all levels."""
        students, teachers = as_pairs(student, teacher)
        for pair in zip(students, teachers):
            check_shapes(*pair)
        levels, rest = divmod(len(students), 2)
        if rest:
            raise ValueError(
                f'CrossHeadLoss takes the scores of all levels and then the boxes of all levels: '
                f'an even number of maps, got {len(students)}; tap the scores and the boxes'
            )
        dtype = common_type(students[0], teachers[0])
        weights = [None] * levels if label_weights is None else label_weights
        if len(weights) != levels:
            raise ValueError(
                f'label_weights has {len(weights)} entries for {levels} levels of scores'
            )
        with no_autocast(students[0].device.type):
            students = [x.to(dtype) for x in students]
            teachers = [x.detach().to(dtype) for x in teachers]
            count = 1 if positives is None else positives
            scores, boxes, confident = [], [], []
            for level in range(levels):
                s, t = ([x[level], x[levels + level]] for x in (students, teachers))
                anchors = self._anchors(t[0], t[1], weights[level])
                own = class_scores(t[0], anchors)
                place = _per_place(weights[level], own)
                value = focal_difference(class_scores(s[0], anchors), own, place, self.beta)
                scores.append(value / count)
                sure = confidence(own)
                if self.boxes == 'bins':
                    gap = bins_apart(s[1], t[1], anchors) / 4
                else:
                    gap = boxes_apart(s[1], t[1], anchors, self.stds) / count
                boxes.append((sure * gap).sum())
                confident.append(sure.sum())
            if self.boxes == 'bins':
                total = sum(confident).clamp(min=torch.finfo(dtype).tiny)
                boxes = [x / total for x in boxes]
            values = [self.cls_weight * c + self.box_weight * b for c, b in zip(scores, boxes)]
            return weighted_sum(values, self.loss_weight)

    def _anchors(self, scores: Tensor, boxes: Tensor, weights: Tensor | None) -> int:
        """The number of anchors at each place."""
        places = scores.shape[2] * scores.shape[3]
        if scores.shape[2:] != boxes.shape[2:]:
            raise ValueError(
                f'scores and boxes lie on different maps: {tuple(scores.shape)} and '
                f'{tuple(boxes.shape)}; tap the scores of all levels and then their boxes'
            )
        if self.boxes == 'deltas':
            anchors = boxes.shape[1] // 4
        else:
            anchors = 1 if weights is None else weights.numel() // max(len(scores) * places, 1)
        anchors = max(anchors, 1)
        fits = boxes.shape[1] % (4 * anchors) == 0 and scores.shape[1] % anchors == 0
        if not fits or (self.boxes == 'bins' and boxes.shape[1] < 8 * anchors):
            raise ValueError(
                f"boxes='{self.boxes}' does not fit maps of scores {tuple(scores.shape)} and boxes "
                f'{tuple(boxes.shape)}: tap the scores of all levels and then their boxes, and '
                "take 'bins' for a distribution of each side (GFL) or 'deltas' for four numbers "
                '(RetinaNet)'
            )
        if weights is not None and weights.numel() != len(scores) * places * anchors:
            raise ValueError(
                f'label_weights {tuple(weights.shape)} do not fit scores {tuple(scores.shape)} '
                f'with {anchors} anchors at each place: the heads of student and teacher need the '
                'same anchors'
            )
        return anchors

    def extra_repr(self) -> str:
        names = ('boxes', 'beta', 'cls_weight', 'box_weight', 'stds', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def _per_place(weights: Tensor | None, scores: Tensor) -> Tensor:
    """Label weights (N, H*W*A) for scores (N, A, K, H, W), as (N, A, 1, H, W)."""
    if weights is None:
        return scores.new_ones(())
    images, anchors, _, height, width = scores.shape
    weights = weights.to(scores).view(images, height, width, anchors)
    return weights.permute(0, 3, 1, 2)[:, :, None]
