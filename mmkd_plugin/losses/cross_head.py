"""Cross-head distillation (CrossKD): the teacher's head on the student's features."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.assigned import Assigned, Level, levels_of, rows
from mmkd_plugin.losses.numerics.autograd import keeps_its_gradient
from mmkd_plugin.losses.numerics.boxes import log_iou
from mmkd_plugin.losses.numerics.checks import loss_weights, one_of, weight
from mmkd_plugin.losses.numerics.maps import Maps, Weight, weighted_sum
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.protocol import boxes_apart, decoded_apart, scores_apart
from mmkd_plugin.registry import MODELS


def bins_apart(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """``sum of weight * KL(T || S)``, with KL summed over the bins of the four sides.

    Args:
        student (Tensor): Logits of the bins of each side, (N, P, 4*(n+1)), in float32 or wider.
        teacher (Tensor): The same of the teacher.
        weights (Tensor): Weight of each place, (N, P).

    Returns:
        Tensor: A scalar.
    """
    s, t = (x.unflatten(2, (4, -1)).log_softmax(3) for x in (student, teacher))
    divergence = F.kl_div(s, t, reduction='none', log_target=True).sum((2, 3))
    return (divergence * weights).sum()


@keeps_its_gradient
def sides_apart(student: Tensor, teacher: Tensor, places: int, weights: Tensor) -> Tensor:
    """:func:`bins_apart` of the maps of a head, (N, A*4*(n+1), H, W) with so many places."""
    return bins_apart(rows(student, places), rows(teacher, places), weights)


def logs_apart(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """``sum of weight * -log(IoU)``, of an IoU of at least 1e-6.

    Args:
        student (Tensor): Boxes of the student, (N, P, 4): x1, y1, x2, y2, in float32 or wider.
        teacher (Tensor): Boxes of the teacher, same shape.
        weights (Tensor): Weight of each place, (N, P).

    Returns:
        Tensor: A scalar.
    """
    return -(log_iou(student, teacher) * weights).sum()


@MODELS.register_module()
class CrossHeadLoss(nn.Module):
    """Match what the teacher's head makes of the student's features with its own output (CrossKD).

    Classes: ``cls * sum of lw * abs(p_T - p_S)^beta * BCE(S, p_T) / n_pos`` over places and
    classes, with p the sigmoid of a score and lw the weights of the labels. Boxes, weighted by w,
    the teacher's highest probability at a place, 0 where lw is: for distributions (GFL)
    ``box * sum of w * KL / (4 * sum of w)``, both over all levels; for others
    ``box * sum of w * (1 - GIoU) / n_pos`` of the decoded boxes, or ``-log(IoU)``. Heads with a
    centerness (ATSS) add ``centerness * sum over positives of BCE(S, p_T) / n_pos``. The term has
    a ``through``.

    CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024.

    - paper: https://arxiv.org/abs/2306.11369
    - code: https://github.com/jbwang1997/CrossKD

    Args:
        boxes (str): ``'bins'`` for heads whose boxes are distributions, ``'decoded'`` for others.
            Defaults to ``'bins'``.
        beta (float): Power of the difference of probabilities, 0 or at least 1. Defaults to 1.0.
        cls (float): Factor on classes. Defaults to 1.0.
        box (float): Factor on boxes; 1 for RetinaNet. Defaults to 4.0.
        centerness (float): Factor on the centerness; 1 for ATSS. Without it the maps have none.
            Defaults to 0.0.
        overlap (str): How far decoded boxes are apart: ``'giou'`` or ``'log_iou'``, the latter for
            FCOS. Defaults to ``'giou'``.
        divide_by (str): ``'positives'``, or ``'centerness'``: the sum that the positives are
            taught, as the authors do for FCOS, and 1 without positives. Defaults to
            ``'positives'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each level. Defaults to
            1.0.

    Shape:
        - student: the class scores (N, A*C, H, W) of all levels, and then their maps of boxes
          (N, A*B, H, W), as they come out of the teacher; with ``centerness`` then its logits
          (N, A, H, W).
        - teacher: the same of the teacher itself.
        - assigned: what the student's assigner found.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if the maps are not those of
            a head with such results, or a head without centerness is to be divided by it.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import CrossHeadLoss
        >>> from mmkd_plugin.losses.numerics.assigned import Assigned
        >>> labels, weights, n_pos = torch.full((2, 16), 3), torch.ones(2, 16), torch.ones(())
        >>> found = Assigned([labels], [weights], [], n_pos, 3, None, None)
        >>> student = [torch.randn(2, c, 4, 4, requires_grad=True) for c in (3, 32)]
        >>> teacher = [torch.randn(2, c, 4, 4) for c in (3, 32)]
        >>> loss = CrossHeadLoss(boxes='bins')(student, teacher, found)
        >>> loss.backward()
        >>> loss.shape, [x.grad.shape[1] for x in student]
        (torch.Size([]), [3, 32])
    """

    needs: ClassVar[tuple[str, ...]] = ('assigned',)
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    needs_raw_maps: ClassVar[bool] = True

    def __init__(
        self,
        boxes: str = 'bins',
        beta: float = 1.0,
        cls: float = 1.0,
        box: float = 4.0,
        centerness: float = 0.0,
        overlap: str = 'giou',
        divide_by: str = 'positives',
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.boxes = one_of('boxes', boxes, ('bins', 'decoded'))
        if 0 < weight('beta', beta) < 1:
            raise ValueError(f'beta must be 0 or at least 1, got {beta!r}')
        self.beta, self.cls, self.box = beta, weight('cls', cls), weight('box', box)
        self.centerness = weight('centerness', centerness)
        if not cls and not box and not centerness:
            raise ValueError('cls, box and centerness are all 0: nothing is left of the loss')
        self.overlap = one_of('overlap', overlap, ('giou', 'log_iou'))
        self.divide_by = one_of('divide_by', divide_by, ('positives', 'centerness'))
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps, assigned: Assigned) -> Tensor:
        """Return the weighted loss of the maps of a head."""
        levels = levels_of(student, teacher, assigned, self.centerness > 0)
        divisor = self._divisor(assigned)
        values = [self._of_level(i, level, assigned, divisor) for i, level in enumerate(levels)]
        if self.boxes == 'bins':
            sure = sum(sure for *_, sure in values)
            divisor = 4 * sure.clamp(min=torch.finfo(sure.dtype).tiny)
        losses = [rest + self.box * b / divisor.to(b.dtype) for rest, b, _ in values]
        return weighted_sum(losses, self.loss_weight)

    def _divisor(self, assigned: Assigned) -> Tensor:
        if self.divide_by == 'positives':
            return assigned.n_pos
        if assigned.centerness is None:
            raise ValueError(
                "divide_by='centerness' takes a head that teaches a centerness, as FCOS does; "
                "for others take divide_by='positives'"
            )
        found = assigned.centerness
        return found.masked_fill(found == 0, 1).clamp(min=1e-6)  # no positives count as one

    def _of_level(
        self, index: int, level: Level, assigned: Assigned, divisor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss without the boxes, the sum over the boxes, and the sum of their weights."""
        places = assigned.labels[index].shape[1]
        with full_precision(*level.scores) as scores, full_precision(*level.boxes) as boxes:
            sure = rows(scores[1], places).amax(2).sigmoid()
            sure = sure * (assigned.weights[index] != 0)  # boxes of ignored places count nothing
            weights = assigned.weights[index].to(sure.dtype) / divisor.to(sure.dtype)
            rest = self.cls * scores_apart(*scores, places, weights, self.beta)
            if level.centerness is not None:
                rest = rest + self.centerness * self._centers_apart(index, level, assigned)
            if self.boxes == 'bins':
                numbers = boxes[0].shape[1:].numel() // places
                if numbers < 8:
                    raise ValueError(
                        f'{numbers} numbers are no distributions of the sides of a box: '
                        "take boxes='decoded'"
                    )
                return rest, sides_apart(*boxes, places, sure), sure.sum()

            def decode(x: Tensor, _: bool) -> Tensor:  # both came out of the teacher
                return assigned.decode(index, assigned.finish(index, x), True)

            apart = boxes_apart if self.overlap == 'giou' else logs_apart
            return rest, decoded_apart(*boxes, sure, decode, apart), sure.sum()

    def _centers_apart(self, index: int, level: Level, assigned: Assigned) -> Tensor:
        with full_precision(*level.centerness) as maps:
            positive, dtype = assigned.positive(index), maps[0].dtype
            weights = positive.to(dtype) / assigned.n_pos.to(dtype)
            return scores_apart(*maps, positive.shape[1], weights, 0)

    def extra_repr(self) -> str:
        rare = dict(centerness=0, overlap='giou', divide_by='positives')
        others = [name for name, usual in rare.items() if getattr(self, name) != usual]
        names = ('boxes', 'beta', 'cls', 'box', *others, 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
