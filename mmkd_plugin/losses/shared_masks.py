"""Shared masks: answers of two mask classifiers to the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.autograd import keeping_gradients
from mmkd_plugin.losses.numerics.checks import (
    finite_number,
    loss_weights,
    temperature,
    weight,
    whole_number,
)
from mmkd_plugin.losses.numerics.drawing import fresh_seed, uniform
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, weighted_sum
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.registry import MODELS


def classes_apart(student: Tensor, teacher: Tensor, counts: Tensor, tau: float) -> Tensor:
    """``sum of c * tau^2 * KL(p_tau(T) || p_tau(S)) / sum of c`` over queries and images.

    Args:
        student (Tensor): Scores of classes and of "no object", (N, Q, C + 1).
        teacher (Tensor): The teacher's.
        counts (Tensor): c, (N, Q).
        tau (float): Temperature.

    Returns:
        Tensor: A scalar.
    """
    s, t = ((x / tau).log_softmax(-1) for x in (student, teacher))
    divergence = F.kl_div(s, t, reduction='none', log_target=True).sum(-1)
    return tau**2 * _mean(divergence, counts)


def masks_apart(student: Tensor, teacher: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the loss on masks, each ``sum of w * part / sum of w``.

    The first is the mean binary cross-entropy to ``q = sigmoid(T)``, less the entropy of q. The
    second is ``sum of abs(p - q) / (sum of p + sum of q + 1)``: the Dice loss, which for q between
    0 and 1 would not be least at ``p = q`` if its intersection was ``p * q``.

    Args:
        student (Tensor): Mask logits at points, (N, Q, P).
        teacher (Tensor): The teacher's at the same points.
        sure (Tensor): w, (N, Q).

    Returns:
        tuple[Tensor, Tensor]: Two scalars.
    """
    p, q = student.sigmoid(), teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, q, reduction='none').mean(-1)
    cross = F.binary_cross_entropy_with_logits(student, q, reduction='none').mean(-1)
    dice = (p - q).abs().sum(-1) / (p.sum(-1) + q.sum(-1) + 1)
    return _mean(cross - entropy, sure), _mean(dice, sure)


def at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Mask logits between positions, bilinear as Mask2Former's own loss reads them.

    Args:
        masks (Tensor): (N, Q, H, W).
        points (Tensor): x and y from 0 to 1, (P, 2).

    Returns:
        Tensor: (N, Q, P).
    """
    grid = (2 * points - 1).to(masks.dtype).expand(len(masks), 1, -1, -1)
    return F.grid_sample(masks, grid, align_corners=False)[:, :, 0]


def unsure_first(logits: Tensor, points: int, oversample: float, importance: float) -> Tensor:
    """Which points of a mask are compared: unsure ones, and the rest of any kind.

    Args:
        logits (Tensor): The student's at all points that were drawn, (N, Q, K).
        points (int): How many are compared.
        oversample (float): Of ``oversample * points`` points the most unsure are taken.
        importance (float): Share of those among ``points``.

    Returns:
        Tensor: Numbers of points, (N, Q, points).
    """
    drawn, unsure = int(oversample * points), int(importance * points)
    chosen = logits[..., :drawn].abs().topk(unsure, -1, largest=False).indices
    others = torch.arange(drawn, drawn + points - unsure, device=logits.device)
    return torch.cat([chosen, others.expand(*chosen.shape[:2], -1)], -1)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


@MODELS.register_module()
class SharedMasksLoss(nn.Module):
    """Match the classes and masks that both decoders answer to the same queries.

    For MaskFormer and Mask2Former what :class:`SharedQueriesLoss` is for detectors: the term has
    ``queries``, with which both decoders are asked once more. Each layer of the student's is
    compared with the teacher's last, at points that are drawn as Mask2Former's own loss draws them.
    A query counts for its mask by the probability that the teacher sees an object there, and for
    its class by at least ``no_object``.

    No paper has this loss. It has the queries of KD-DETR (https://arxiv.org/abs/2211.08071), the
    points and factors of Mask2Former (https://arxiv.org/abs/2112.01527), and the Dice loss for soft
    labels of JDT (https://arxiv.org/abs/2302.05666).

    Args:
        tau (float): Temperature of the class scores. Defaults to 1.0.
        weights (Sequence[float]): Factors on classes, cross-entropy and Dice. Defaults to
            ``(2.0, 5.0, 5.0)``.
        no_object (float): How much a query counts for its class where the teacher sees no object.
            Defaults to 0.1.
        points (int): Points of each mask. Defaults to 12544.
        oversample (float): How many times as many points the unsure ones are chosen from. Defaults
            to 3.0.
        importance (float): Share of the unsure ones. Defaults to 0.75.
        loss_weight (float | list[float]): Factor on the loss, or one for each group of queries.
            Defaults to 1.0.

    Shape:
        - student: for each group of queries class scores (L, N, Q, C + 1), "no object" last, and
          mask logits (L, N, Q, H, W).
        - teacher: for each group scores (1, N, Q, C + 1) and mask logits (1, N, Q, h, w).
        - seed: int64 of shape (), which decides the points; None draws one.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import SharedMasksLoss
        >>> criterion = SharedMasksLoss(points=50)
        >>> scores = torch.randn(3, 2, 9, 6, requires_grad=True)
        >>> masks = torch.randn(3, 2, 9, 8, 8, requires_grad=True)
        >>> teacher = [torch.randn(1, 2, 9, 6), torch.randn(1, 2, 9, 16, 16)]
        >>> criterion([scores, masks], teacher).backward()
        >>> scores.grad.shape, masks.grad.shape
        (torch.Size([3, 2, 9, 6]), torch.Size([3, 2, 9, 8, 8]))
    """

    needs: ClassVar[tuple[str, ...]] = ('seed',)
    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = False

    def __init__(
        self,
        tau: float = 1.0,
        weights: Sequence[float] = (2.0, 5.0, 5.0),
        no_object: float = 0.1,
        points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        if not isinstance(weights, (list, tuple)) or len(weights) != 3:
            raise ValueError(f'weights must be three numbers, got {weights!r}')
        self.weights = tuple(weight('weights', one) for one in weights)
        if not any(self.weights):
            raise ValueError('weights are all 0: nothing is left of the loss')
        self.no_object = _share('no_object', no_object)
        self.points = whole_number('points', points)
        if finite_number('oversample', oversample) < 1:
            raise ValueError(f'oversample must be at least 1, got {oversample!r}')
        self.oversample = oversample
        self.importance = _share('importance', importance)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps, seed: Tensor | None = None) -> Tensor:
        """Return the weighted loss of all groups of queries."""
        students, teachers = as_pairs(student, teacher)
        if len(students) % 2:
            raise ValueError(
                f'SharedMasksLoss takes scores and masks in turn, got {len(students)} tensors; '
                'add queries=dict() to the term'
            )
        seed = fresh_seed(students[0].device) if seed is None else seed
        dtype = common_type(students[0], teachers[0])
        losses = []
        with no_autocast(students[0].device.type):
            for n in range(0, len(students), 2):
                s, t = students[n : n + 2], [x.detach().to(dtype) for x in teachers[n : n + 2]]
                _check(s, t)
                seen = 1 - t[0][0].softmax(-1)[..., -1]
                layers = []
                for number, (scores, masks) in enumerate(zip(*s)):
                    stream = 100 * n + number
                    compare = partial(self._layer, teacher=t, seen=seen, seed=seed, stream=stream)
                    layers.append(keeping_gradients(compare, scores.to(dtype), masks.to(dtype)))
                losses.append(sum(layers[1:], start=layers[0]))
            return weighted_sum(losses, self.loss_weight)

    def _layer(
        self,
        scores: Tensor,
        masks: Tensor,
        teacher: Sequence[Tensor],
        seen: Tensor,
        seed: Tensor,
        stream: int,
    ) -> Tensor:
        """Compares a layer of the student with the last one of the teacher."""
        of_classes, cross, dice = self.weights
        their_scores, their_masks = teacher
        counts = seen + self.no_object * (1 - seen)
        value = of_classes * classes_apart(scores, their_scores[0], counts, self.tau)
        if not (cross or dice):
            return value
        unsure = int(self.importance * self.points)
        drawn = int(self.oversample * self.points) + self.points - unsure
        points = uniform(seed, (drawn, 2), stream)
        s, t = at_points(masks, points), at_points(their_masks[0], points)
        chosen = unsure_first(s.detach(), self.points, self.oversample, self.importance)
        parts = masks_apart(s.gather(-1, chosen), t.gather(-1, chosen), seen)
        return value + cross * parts[0] + dice * parts[1]

    def extra_repr(self) -> str:
        names = 'tau', 'weights', 'no_object', 'points', 'oversample', 'importance', 'loss_weight'
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def _share(name: str, value: float) -> float:
    if not 0 <= finite_number(name, value) <= 1:
        raise ValueError(f'{name} must be from 0 to 1, got {value!r}')
    return value


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Refuses answers that do not belong together."""
    scores, masks, own, theirs = (tuple(x.shape) for x in (*student, *teacher))
    fits = (len(scores), len(own), len(masks), len(theirs)) == (4, 4, 5, 5)
    fits = fits and masks[:3] == scores[:3] and theirs[:3] == own[:3]
    fits = fits and own[0] == 1 and own[1:3] == scores[1:3]
    if not fits:
        raise ValueError(
            f'answers do not fit: student {scores} and {masks}, teacher {own} and {theirs}; '
            'expected class scores (layers, N, Q, C + 1) and masks (layers, N, Q, H, W), of the '
            'teacher one layer. It compares models that classify masks, asked by queries=dict(); '
            'for boxes take mmkd_plugin.SharedQueriesLoss'
        )
    if own[3] != scores[3]:
        raise ValueError(
            f'numbers of classes differ: student {scores[3] - 1}, teacher {own[3] - 1}; take a '
            "teacher of the student's data set"
        )
