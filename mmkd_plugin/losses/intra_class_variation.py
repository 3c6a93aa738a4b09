"""Intra-class feature variation (IFVD): how far each position is from the centre of its class."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import intra_class_variation as fast
from mmkd_plugin.losses.numerics.checks import an_index, check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS

EPS = 1e-8


# traced too: the compiled formula needs twice as much memory
@with_fast_form(fast.intra_class_variation, traced=True)
def intra_class_variation(
    student: Tensor, teacher: Tensor, labels: Tensor, ignore_index: int = 255
) -> Tensor:
    """``mean over N*H*W of (cos(S, c_S) - cos(T, c_T))^2``, see :func:`centre_cosines`.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        labels (Tensor): Integers, (N, h, w).
        ignore_index (int): Positions with this label, or a negative one, add 0. Defaults to 255.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    classes, number, ignored = fast.classes_at(student, labels, ignore_index)
    with full_precision(student, teacher) as (s, t):
        cos_s, cos_t = (centre_cosines(x.flatten(2), classes, number) for x in (s, t))
        gap = (cos_s - cos_t).masked_fill(ignored, 0)
        return gap.square().sum() / max(gap.numel(), 1)


def centre_cosines(x: Tensor, classes: Tensor, number: int) -> Tensor:
    """The cosine of each vector and the centre of its class: the mean of the vectors in its image.

    Args:
        x (Tensor): (N, C, n), in float32 or wider.
        classes (Tensor): The class of each position, int64, (N, n).
        number (int): All classes are below it.

    Returns:
        Tensor: (N, n).
    """
    at = classes[:, None].expand_as(x)
    sums, counts = (
        x.new_zeros(*x.shape[:2], number).scatter_add(2, at, y) for y in (x, torch.ones_like(x))
    )
    centres = (sums / (counts + 1e-6)).gather(2, at)
    return (divided_by_length(x) * divided_by_length(centres)).sum(1)


def divided_by_length(x: Tensor) -> Tensor:
    """Divide vectors (N, C, n) by their length, by 1e-8 if they are shorter: as in the cosine
    similarity of PyTorch, but then without a gradient, which would be 1e8 times as large.
    """
    squares = x.square().sum(1, keepdim=True)
    short = squares <= EPS**2
    return torch.where(short, x.detach() / EPS, x / squares.masked_fill(short, 1).sqrt())


@MODELS.register_module()
class IntraClassVariationLoss(nn.Module):
    """Match how far each position is from the centre of its class (IFVD).

    In each image, the centre of a class is the mean of its features, ``sum / (count + 1e-6)``, and
    the gradient flows through it; the loss is
    ``mean over N*H*W of (cos(S, c_S) - cos(T, c_T))^2``. An ignored position is its own centre, so
    it adds 0 and is counted. Time and memory are about the same for 2 classes and for 150:
    there is no loop over them.

    Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020.

    - paper: https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php
    - code: https://github.com/YukangWang/IFVD

    Args:
        ignore_index (int): Label of the positions to ignore. Negative labels are ignored too, for
            they are no class. Defaults to 255.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            200, CIRKD 20. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - output: a scalar.

    Raises:
        TypeError: If an argument or, in ``forward``, the labels have the wrong type.
        ValueError: In ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import IntraClassVariationLoss
        >>> criterion = IntraClassVariationLoss(loss_weight=200)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 8, 16)
        >>> labels = torch.randint(0, 19, (2, 64, 128))
        >>> loss = criterion(student, teacher, labels)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs: ClassVar[tuple[str, ...]] = ('labels',)
    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(self, ignore_index: int = 255, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.ignore_index = an_index('ignore_index', ignore_index)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single position is the centre of its class."""
        if size is None or math.prod(size) > 1:
            return None
        return 'a single position always is the centre of its class; tap larger maps'

    def forward(self, student: Maps, teacher: Maps, labels: Tensor) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(intra_class_variation, labels=labels, ignore_index=self.ignore_index)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'ignore_index={self.ignore_index}, loss_weight={self.loss_weight}'
