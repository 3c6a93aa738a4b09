"""Correlations between and within classes (DIST)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import class_correlation as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    index_or_none,
    kept_positions,
    loss_weights,
    temperature,
    weight,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import distances_to_zero
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.class_correlation)
def class_correlation(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    inter: float = 1.0,
    intra: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """``tau^2 * (inter * (1 - mean rho of rows) + intra * (1 - mean rho of classes))``.

    Args:
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        tau (float): Temperature of both distributions. Defaults to 1.0.
        inter (float): Factor on the correlations of the rows: the classes of an image or a
            position. Defaults to 1.0.
        intra (float): Factor on the correlations of the classes: the rows of a class. Defaults to
            1.0.
        labels (Tensor, optional): Integers (N, h, w), used with ``ignore_index`` only.
        ignore_index (int, optional): Positions with this label are left out.

    Returns:
        Tensor: A scalar; 0 where no row is left.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    kept = None
    if ignore_index is not None:
        kept = kept_positions(student, labels, ignore_index)[:, None]
    with full_precision(student, teacher) as (s, t):
        if not len(s):
            return s.sum()
        s, t = ((x / tau).softmax(1) for x in (s, t))
        of_rows = correlation(s, t, (1,))
        of_classes = correlation(s, t, (0, *range(2, s.dim())), kept)
        if kept is None:
            return tau**2 * (inter * (1 - of_rows.mean()) + intra * (1 - of_classes.mean()))
        count = kept.sum()
        mean = of_rows.masked_fill(~kept[:, 0], 0).sum() / count.clamp(min=1)
        value = inter * (1 - mean) + intra * (1 - of_classes.mean())
        return tau**2 * value.masked_fill(count == 0, 0)


def correlation(a: Tensor, b: Tensor, dims: tuple[int, ...], kept: Tensor | None = None) -> Tensor:
    """Pearson's correlation along some dimensions, which go: 0 where one of both is constant.

    Args:
        a (Tensor): Of any shape, in float32 or wider.
        b (Tensor): The same shape.
        dims (tuple[int, ...]): Where the numbers lie that are correlated.
        kept (Tensor, optional): Booleans that tell what counts; they are broadcast.

    Returns:
        Tensor: ``<a - mean, b - mean> / (|a - mean| |b - mean| + 1e-8)``.
    """
    a, b = (centred(x, dims, kept) for x in (a, b))
    lengths = distances_to_zero(a, dims) * distances_to_zero(b, dims)
    return (a * b).sum(dims) / (lengths + fast.EPS)


def centred(x: Tensor, dims: tuple[int, ...], kept: Tensor | None = None) -> Tensor:
    """Numbers minus their mean; numbers that are all equal become 0 without a gradient."""
    least = most = x.detach()
    if kept is None:
        gap = x - x.mean(dims, keepdim=True)
    else:
        least, most = (most.masked_fill(~kept, fill) for fill in (torch.inf, -torch.inf))
        count = kept.sum(dims, keepdim=True).clamp(min=1)
        x = x.masked_fill(~kept, 0)
        gap = (x - x.sum(dims, keepdim=True) / count).masked_fill(~kept, 0)
    equal = most.amax(dims, keepdim=True) <= least.amin(dims, keepdim=True)
    return gap.masked_fill(equal, 0)


@MODELS.register_module()
class ClassCorrelationLoss(nn.Module):
    """Match how class probabilities go with each other, not their values (DIST).

    With ``p = softmax(x / tau)`` and Pearson's correlation ``rho``, the loss is
    ``tau^2 * (inter * (1 - mean rho of the rows) + intra * (1 - mean rho of the classes))``. A row
    is an image or, of maps, a position; the numbers of a class are those of all rows of the batch.
    Where all numbers are equal, ``rho`` is 0 and there is no gradient: in the authors' code it is
    up to 1e8 there, since the denominator is 1e-8.

    Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.

    - paper: https://arxiv.org/abs/2205.10536
    - code: https://github.com/hunto/DIST_KD

    Args:
        tau (float): Temperature of the softmax; a higher one is softer. Defaults to 1.0.
        inter (float): Factor on the part of the rows. Defaults to 1.0.
        intra (float): Factor on the part of the classes. Defaults to 1.0.
        ignore_index (int, optional): Label of the positions to leave out; ``forward`` then needs
            ``labels``. Defaults to None, every position counts, as in the authors' code.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1 on the logits of a segmentor before upsampling, with ``tau=1``, and 2 for classifiers.
            Defaults to 1.0.

    Shape:
        - student: (N, C) or (N, C, H, W), or a sequence of such tensors (the losses are added up).
        - teacher: the same shapes as the student.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - output: a scalar. A single class costs ``tau^2 * (inter + intra)`` and teaches nothing; so
          does the part of the classes for a single row.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes differ or labels that
            ``ignore_index`` needs are missing.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import ClassCorrelationLoss
        >>> criterion = ClassCorrelationLoss(loss_weight=1)
        >>> student = torch.randn(2, 19, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 19, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 19, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True
    compares_probabilities: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 1.0,
        inter: float = 1.0,
        intra: float = 1.0,
        ignore_index: int | None = None,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        self.inter, self.intra = weight('inter', inter), weight('intra', intra)
        if not inter and not intra:
            raise ValueError('inter and intra are both 0: nothing is left of the loss')
        self.ignore_index = index_or_none('ignore_index', ignore_index)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs(self) -> tuple[str, ...]:
        """What ``forward`` needs besides the maps: labels, if there is something to ignore."""
        return () if self.ignore_index is None else ('labels',)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss has no gradient, if it has none: a single class is always certain."""
        return None if channels > 1 else 'the softmax over a single class is always 1'

    def forward(self, student: Maps, teacher: Maps, labels: Tensor | None = None) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            class_correlation,
            tau=self.tau,
            inter=self.inter,
            intra=self.intra,
            labels=labels,
            ignore_index=self.ignore_index,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'tau={self.tau}, inter={self.inter}, intra={self.intra}, '
            f'ignore_index={self.ignore_index}, loss_weight={self.loss_weight}'
        )
