"""Shared queries (KD-DETR): answers of two decoders to the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.boxes import generalised_iou
from mmkd_plugin.losses.numerics.checks import loss_weights, temperature, weight
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, weighted_sum
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.registry import MODELS


def scores_apart(student: Tensor, teacher: Tensor, sure: Tensor, tau: float) -> Tensor:
    """``sum of w * tau^2 * KL(p_tau(T) || p_tau(S)) / C`` over queries, images and layers.

    Args:
        student (Tensor): Scores of classes, (L, N, Q, C).
        teacher (Tensor): The teacher's, (1, N, Q, C).
        sure (Tensor): w, (1, N, Q).
        tau (float): Temperature.

    Returns:
        Tensor: A scalar.
    """
    s, t = ((x / tau).log_softmax(-1) for x in (student, teacher))
    divergence = F.kl_div(s, t.expand_as(s), reduction='none', log_target=True).sum(-1)
    return (sure * divergence).sum() * (tau**2 / student.shape[-1])


def boxes_apart(student: Tensor, teacher: Tensor, sure: Tensor, l1: float, iou: float) -> Tensor:
    """``sum of w * (l1 * mean of abs(b_S - b_T) + iou * (1 - GIoU)) / sum of w``, over all layers.

    Args:
        student (Tensor): cx, cy, w, h from 0 to 1, (L, N, Q, 4).
        teacher (Tensor): The teacher's, (1, N, Q, 4).
        sure (Tensor): w, (1, N, Q).
        l1 (float): Factor on the distance.
        iou (float): Factor on ``1 - GIoU``.

    Returns:
        Tensor: A scalar.
    """
    gap = l1 * (student - teacher).abs().mean(-1)
    gap = gap + iou * (1 - generalised_iou(_corners(student), _corners(teacher)))
    return (sure * gap).sum() / sure.sum().clamp(min=torch.finfo(sure.dtype).tiny)


def _corners(boxes: Tensor) -> Tensor:
    centre, size = boxes.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


@MODELS.register_module()
class SharedQueriesLoss(nn.Module):
    """Match the answers of both decoders to the same queries (KD-DETR).

    Detectors with queries learn queries of their own, so their predictions cannot be compared. The
    term has ``queries``: both decoders are asked once more, with the teacher's queries and with
    random ones. Each layer of the student's decoder is compared with the teacher's last, weighted
    by the highest probability that the teacher gives a class there.

    KD-DETR: Knowledge Distillation for Detection Transformer with Consistent Distillation Points
    Sampling, CVPR 2024.

    - paper: https://arxiv.org/abs/2211.08071
    - code: https://github.com/wennyuhey/KD-DETR

    Args:
        tau (float): Temperature of the scores. Defaults to 10.0.
        weights (Sequence[float]): Factors on scores, distances of boxes and ``1 - GIoU``. Defaults
            to ``(1.0, 5.0, 2.0)``.
        loss_weight (float | list[float]): Factor on the loss, or one for each group of queries.
            Defaults to 1.0.

    Shape:
        - student: for each group of queries scores (L, N, Q, C), and boxes (L, N, Q, 4) with
          cx, cy, w, h from 0 to 1.
        - teacher: for each group scores (1, N, Q, C) and boxes (1, N, Q, 4).
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import SharedQueriesLoss
        >>> criterion = SharedQueriesLoss()
        >>> scores, boxes = torch.randn(6, 2, 30, 5, requires_grad=True), torch.rand(6, 2, 30, 4)
        >>> teacher = [torch.randn(1, 2, 30, 5), torch.rand(1, 2, 30, 4)]
        >>> loss = criterion([scores, boxes], teacher)
        >>> loss.backward()
        >>> loss.shape, scores.grad.shape
        (torch.Size([]), torch.Size([6, 2, 30, 5]))
    """

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = False

    def __init__(
        self,
        tau: float = 10.0,
        weights: Sequence[float] = (1.0, 5.0, 2.0),
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        if not isinstance(weights, (list, tuple)) or len(weights) != 3:
            raise ValueError(f'weights must be three numbers, got {weights!r}')
        self.weights = tuple(weight('weights', one) for one in weights)
        if not any(self.weights):
            raise ValueError('weights are all 0: nothing is left of the loss')
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of all groups of queries."""
        students, teachers = as_pairs(student, teacher)
        if len(students) % 2:
            raise ValueError(
                f'SharedQueriesLoss takes scores and boxes in turn, got {len(students)} tensors; '
                'add queries=dict() to the term'
            )
        dtype = common_type(students[0], teachers[0])
        losses = []
        with no_autocast(students[0].device.type):
            for n in range(0, len(students), 2):
                s, t = students[n : n + 2], teachers[n : n + 2]
                _check(s, t)
                s, t = [x.to(dtype) for x in s], [x.detach().to(dtype) for x in t]
                sure = t[0].amax(-1).sigmoid()
                of_scores, l1, iou = self.weights
                value = of_scores * scores_apart(s[0], t[0], sure, self.tau)
                losses.append(value + boxes_apart(s[1], t[1], sure, l1, iou))
            return weighted_sum(losses, self.loss_weight)

    def extra_repr(self) -> str:
        return f'tau={self.tau}, weights={self.weights}, loss_weight={self.loss_weight}'


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Refuses answers that do not belong together."""
    forms = [tuple(x.shape) for x in (*student, *teacher)]
    scores, boxes, own, theirs = forms
    fits = all(len(form) == 4 for form in forms)
    fits = fits and boxes == (*scores[:3], 4) and theirs == (*own[:3], 4)
    fits = fits and own[0] == 1 and own[1:3] == scores[1:3]
    if not fits:
        raise ValueError(
            f'answers do not fit: student {scores} and {boxes}, teacher {own} and {theirs}; '
            'expected scores (layers, N, Q, C) and boxes (layers, N, Q, 4), of the teacher one '
            'layer. Add queries=dict() to the term; for masks take mmkd_plugin.SharedMasksLoss'
        )
    if own[3] != scores[3]:
        raise ValueError(
            f'numbers of classes differ: student {scores[3]}, teacher {own[3]}; take a teacher of '
            "the student's data set"
        )
