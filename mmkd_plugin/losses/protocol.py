"""Bridging cross-task protocols (BCKD): classes as sigmoids, and the boxes they stand for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.assigned import Assigned, Level, levels_of, rows
from mmkd_plugin.losses.numerics.autograd import keeps_its_gradient
from mmkd_plugin.losses.numerics.boxes import generalised_iou
from mmkd_plugin.losses.numerics.checks import loss_weights, weight
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, weighted_sum
from mmkd_plugin.losses.numerics.one_pass import by_autograd, one_pass
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


def classes_apart(student: Tensor, teacher: Tensor, weights: Tensor, beta: float) -> Tensor:
    """``sum of weight * abs(sigmoid(T) - sigmoid(S))^beta * BCE(S, sigmoid(T))``.

    Args:
        student (Tensor): Logits of the student, (N, P, C), in float32 or wider.
        teacher (Tensor): Logits of the teacher, same shape and type.
        weights (Tensor): Weight of each place, (N, P).
        beta (float): Power of the difference.

    Returns:
        Tensor: A scalar.
    """
    target = teacher.sigmoid()
    apart = F.binary_cross_entropy_with_logits(student, target, reduction='none')
    apart = apart * (target - student.sigmoid()).abs() ** beta
    return (apart.sum(2) * weights).sum()


def boxes_apart(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """``sum of weight * (1 - GIoU)``.

    Args:
        student (Tensor): Boxes of the student, (N, P, 4): x1, y1, x2, y2, in float32 or wider.
        teacher (Tensor): Boxes of the teacher, same shape.
        weights (Tensor): Weight of each place, (N, P).

    Returns:
        Tensor: A scalar.
    """
    return ((1 - generalised_iou(student, teacher)) * weights).sum()


def _in_pieces(
    student: Tensor, teacher: Tensor, places: int, weights: Tensor, beta: float
) -> Tensor:
    """As :func:`scores_apart`, a few places at a time."""
    s, t = (rows(x, places) for x in (student, teacher))
    return one_pass(by_autograd(partial(classes_apart, beta=beta)), s, t, weights)


@with_fast_form(_in_pieces)
def scores_apart(
    student: Tensor, teacher: Tensor, places: int, weights: Tensor, beta: float
) -> Tensor:
    """:func:`classes_apart` of the maps of a head, (N, A*C, H, W) with so many places."""
    return classes_apart(rows(student, places), rows(teacher, places), weights, beta)


@keeps_its_gradient
def decoded_apart(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    decode: Callable[[Tensor, bool], Tensor],
    apart: Callable[[Tensor, Tensor, Tensor], Tensor] = boxes_apart,
) -> Tensor:
    """:func:`boxes_apart` of the boxes that the maps of a head stand for.

    Args:
        student (Tensor): Map of the student, (N, A*B, H, W), in float32 or wider.
        teacher (Tensor): Map of the teacher, same shape.
        weights (Tensor): Weight of each place, (N, P).
        decode (Callable): Takes a map, and whether it is the teacher's; gives its boxes, (N, P, 4).
        apart (Callable): What compares the boxes. Defaults to :func:`boxes_apart`.

    Returns:
        Tensor: A scalar.
    """
    return apart(decode(student, False), decode(teacher, True), weights)


@MODELS.register_module()
class ProtocolLoss(nn.Module):
    """Match each class as a yes or no, and the boxes where these differ (BCKD).

    For detectors with a sigmoid for each class. Each level that has a positive of the student's
    assigner adds ``cls * sum of lw * abs(p_T - p_S)^beta * BCE(S, p_T) / n_pos`` over places and
    classes, and ``box * sum of lw * max over classes of abs(p_T - p_S) * (1 - GIoU) / n_pos`` over
    places, with p the sigmoid of a score and lw the weights of the labels. The factor on boxes gets
    no gradient, that on classes does. A level without positives adds nothing, as in the authors'
    code.

    Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection, ICCV
    2023.

    - paper: https://arxiv.org/abs/2308.14286
    - code: https://github.com/TinyTigerPan/BCKD

    Args:
        beta (float): Power of the difference of probabilities, 0 or at least 1. Defaults to 1.0.
        cls (float): Factor on classes. Defaults to 1.0.
        box (float): Factor on boxes. Defaults to 4.0.
        loss_weight (float | list[float]): Factor on the loss, or one for each level. Defaults to
            1.0.

    Shape:
        - student: the class scores (N, A*C, H, W) of all levels, and then their maps of boxes
          (N, A*B, H, W), as a head gives them.
        - teacher: the same shapes as the student.
        - assigned: what the student's assigner found.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ or the maps
            are not scores and boxes.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ProtocolLoss
        >>> from mmkd_plugin.losses.numerics.assigned import Assigned, rows
        >>> def decode(level, boxes, of_teacher):  # exp of what the head gives, around a point
        ...     return rows(boxes, 16).exp() * torch.tensor([-1.0, -1, 1, 1])
        >>> labels = torch.full((2, 16), 3)
        >>> labels[0, 5] = 1  # one positive, of class 1 of three
        >>> weights, n_pos = torch.ones(2, 16), torch.ones(())
        >>> found = Assigned([labels], [weights], [], n_pos, 3, decode, None)
        >>> student = [torch.randn(2, c, 4, 4, requires_grad=True) for c in (3, 4)]
        >>> teacher = [torch.randn(2, c, 4, 4) for c in (3, 4)]
        >>> loss = ProtocolLoss()(student, teacher, found)
        >>> loss.backward()
        >>> loss.shape, [x.grad.shape[1] for x in student]
        (torch.Size([]), [3, 4])
    """

    needs: ClassVar[tuple[str, ...]] = ('assigned',)
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    needs_raw_maps: ClassVar[bool] = True

    def __init__(
        self, beta: float = 1.0, cls: float = 1.0, box: float = 4.0, loss_weight: Weight = 1.0
    ) -> None:
        super().__init__()
        if 0 < weight('beta', beta) < 1:
            raise ValueError(f'beta must be 0 or at least 1, got {beta!r}')
        self.beta, self.cls, self.box = beta, weight('cls', cls), weight('box', box)
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps, assigned: Assigned) -> Tensor:
        """Return the weighted loss of the maps of a head."""
        levels = levels_of(student, teacher, assigned)
        losses = [self._of_level(i, level, assigned) for i, level in enumerate(levels)]
        return weighted_sum(losses, self.loss_weight)

    def _of_level(self, index: int, level: Level, assigned: Assigned) -> Tensor:
        places = assigned.labels[index].shape[1]
        with full_precision(*level.scores) as scores, full_precision(*level.boxes) as boxes:
            s, t = (rows(x.detach(), places) for x in scores)
            there = assigned.positive(index).any().to(s.dtype)
            weights = assigned.weights[index].to(s.dtype) * (there / assigned.n_pos.to(s.dtype))
            differ = (t.sigmoid() - s.sigmoid()).abs().amax(2)
            loss = self.cls * scores_apart(*scores, places, weights, self.beta)
            decode = partial(assigned.decode, index)
            return loss + self.box * decoded_apart(*boxes, weights * differ, decode)

    def extra_repr(self) -> str:
        names = ('beta', 'cls', 'box', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
