"""Hint learning (FitNets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import hint as fast
from mmkd_plugin.losses.numerics.assigned import Assigned
from mmkd_plugin.losses.numerics.boxes import checked_boxes, overlap
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, share_below_one
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS
from mmkd_plugin.tracing import is_compiling


@with_fast_form(fast.hint)
def hint(student: Tensor, teacher: Tensor, region: Tensor | None = None) -> Tensor:
    """``mean over all elements of (student - teacher)^2``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W) or (N, C).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.
        region (Tensor, optional): Booleans (N, 1, H, W): the positions whose elements count.
            Defaults to None: all.

    Returns:
        Tensor: A scalar; 0 where no position counts.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        if region is not None:
            return ((s - t).square() * fast.shares(region, s)).sum()
        return (s - t).square().sum() / max(s.numel(), 1)


@torch.no_grad()
def regions_of_objects(priors: Sequence[Tensor], boxes: Tensor, share: float) -> list[Tensor]:
    """The anchors near objects: IoU above a share of the largest one of all anchors.

    Args:
        priors (Sequence[Tensor]): Anchors of each level, (N, P, 4), in float32 or wider.
        boxes (Tensor): Ground-truth boxes, (N, n, 4); NaN is no box.
        share (float): The share, at least 0 and below 1.

    Returns:
        list[Tensor]: Booleans for each level, (N, P).
    """
    ious = []
    for anchors in priors:
        intersection, union = overlap(boxes[:, :, None], anchors[:, None])
        ious.append(intersection / union)  # (N, n, P), NaN where there is no box
    largest = torch.stack([iou.amax(2, keepdim=True) for iou in ious]).amax(0)
    return [(iou > share * largest).any(1) for iou in ious]


@MODELS.register_module()
class HintLoss(nn.Module):
    """Match every value of the map (FitNets).

    ``mean over all elements of (S - T)^2``. The authors' regressor on the student is a convolution
    without bias: ``connector=dict(type='mmkd_plugin.ConvConnector', bias=False)``.

    FitNets: Hints for Thin Deep Nets, ICLR 2015.

    - paper: https://arxiv.org/abs/1412.6550
    - code: https://github.com/adri-romsor/FitNets

    With ``region``, only positions of a detector's pyramid near objects count: those with an anchor
    whose IoU with an object is above this share of the largest IoU of all anchors with it. LD does
    so at the neck, with a share of 0.5.

    Args:
        loss_weight (float | list[float]): Factor on the loss, or one for each map. CIRKD uses 10,
            RepDistiller 100, LD 2 with ``region=0.5``. Defaults to 1.0.
        region (float, optional): The share, at least 0 and below 1; ``forward`` then needs
            ``assigned`` and ``padded_boxes``. Defaults to None: every position counts.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such maps (the losses are added up).
          With ``region`` one map (N, C, H, W) for each level of the head.
        - teacher: the same shapes as the student.
        - assigned: what the student's assigner found; its anchors are read.
        - padded_boxes: (N, n, 4), x1, y1, x2, y2 in pixels, NaN where an image has fewer boxes; or
          one tensor (n, 4) for each image.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``region`` is out of range or, in ``forward``, if shapes differ, or the
            levels of the head do not fit the maps or have points in place of anchors.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import HintLoss
        >>> criterion = HintLoss(loss_weight=100)
        >>> student = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 8)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(self, loss_weight: Weight = 1.0, region: float | None = None) -> None:
        super().__init__()
        self.region = None if region is None else share_below_one('region', region)
        self.loss_weight = loss_weights(loss_weight)
        self._has_anchors = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What ``forward`` needs besides the maps: anchors and boxes, if there is a region."""
        return () if self.region is None else ('assigned', 'padded_boxes')

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        assigned: Assigned | None = None,
        padded_boxes: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        if self.region is None:
            return sum_over_maps(hint, student, teacher, self.loss_weight)
        students, teachers = as_pairs(student, teacher)
        if assigned is None or padded_boxes is None:
            raise ValueError(
                f'region={self.region} needs `assigned` and `padded_boxes`; give them, or leave '
                '`region` out'
            )
        self._check_levels(students, assigned)
        boxes = checked_boxes(padded_boxes, students[0])
        regions = regions_of_objects(assigned.priors, boxes, self.region)
        each = [
            near.unflatten(1, (x.shape[2] * x.shape[3], -1)).any(2).view_as(x[:, :1])
            for near, x in zip(regions, students)
        ]
        return sum_over_maps(hint, students, teachers, self.loss_weight, each)

    def _check_levels(self, students: Sequence[Tensor], assigned: Assigned) -> None:
        levels = [tuple(x.shape[:2]) for x in assigned.priors]
        fits = len(levels) == len(students) and all(
            x.dim() == 4 and len(x) == images and not places % (x.shape[2] * x.shape[3])
            for x, (images, places) in zip(students, levels)
        )
        if not fits:
            raise ValueError(
                f'region={self.region} needs a map for each level of the head, whose anchors are '
                f'{levels} (images, anchors); the maps are {[tuple(x.shape) for x in students]}; '
                "tap='neck' gives them"
            )
        if not self._has_anchors and not is_compiling():  # asked once: it waits for the device
            self._has_anchors = all((x[..., 2] > x[..., 0]).any() for x in assigned.priors)
            if not self._has_anchors:
                raise ValueError(
                    f'region={self.region} compares boxes with anchors, and this head has points; '
                    'leave `region` out, or take FocalGlobalLoss, which reads the boxes alone'
                )

    def extra_repr(self) -> str:
        return f'region={self.region}, loss_weight={self.loss_weight}'
