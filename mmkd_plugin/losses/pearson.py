"""Pearson correlation of features (PKD)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.hint import hint
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import by_autograd, one_pass
from mmkd_plugin.losses.numerics.precision import full_precision, no_autocast
from mmkd_plugin.losses.numerics.resizing import resized
from mmkd_plugin.losses.numerics.standard import standardised
from mmkd_plugin.registry import MODELS

EPS = 1e-6
RESIZES = ('student', 'teacher')


def pearson(student: Tensor, teacher: Tensor, resize: str = 'student') -> Tensor:
    """``mean (z_S - z_T)^2 / 2``, each channel standardised over the batch and its positions.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, (N, C, h, w). It gets no gradient.
        resize (str): See :class:`PearsonLoss`. Defaults to ``'student'``.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_size=False)
    with no_autocast(student.device.type):
        s, t = student, teacher.detach()
        if resize == 'student':
            s = resized(s, t.shape[2:])
        else:
            t = resized(t, s.shape[2:])
        return gap_of_patterns(s, t)


def _in_pieces(student: Tensor, teacher: Tensor) -> Tensor:
    def formula(s: Tensor, t: Tensor) -> Tensor:
        z_s, z_t = (standardised(x, (1, 2, 3), EPS) for x in (s, t))
        return (z_s - z_t).square().sum() / (2 * max(student.numel(), 1))

    by_channels = (x.transpose(0, 1) for x in (student, teacher))
    return one_pass(by_autograd(formula), *by_channels, dim=4)  # a channel stays whole


@with_fast_form(_in_pieces)
def gap_of_patterns(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`pearson`; both maps have the same shape."""
    with full_precision(student, teacher) as pair:
        return hint(*(standardised(x, (0, 2, 3), EPS) for x in pair)) / 2


@MODELS.register_module()
class PearsonLoss(nn.Module):
    """Match the pattern of each channel, whatever its level and its scale (PKD).

    Each channel is standardised over the batch and all positions,
    ``z = (x - mean) / (std + 1e-6)`` with the unbiased standard deviation; the loss is
    ``mean (z_S - z_T)^2 / 2``, which is about one minus the Pearson correlation of the channels. A
    channel that is the same everywhere, and the only value of a channel, becomes 0 and gets no
    gradient. In MMRazor's code the former has gradients of 1e6 over the number of values, and the
    latter is NaN.

    The statistics are those of the images on one process: two processes with half of the batch
    each differ from one with all of it.

    PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
    NeurIPS 2022.

    - paper: https://arxiv.org/abs/2207.02039
    - code: https://github.com/open-mmlab/mmrazor/tree/main/configs/distill/mmdet/pkd

    Args:
        resize (str): Which of two maps of different sizes is resized, bilinearly: the
            ``'student'``'s or the ``'teacher'``'s. Defaults to ``'student'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            6 on four levels of the pyramid of a two-stage detector and 10 on RetinaNet's. Defaults
            to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: as many channels; sizes may differ.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: If ``resize`` is unknown or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import PearsonLoss
        >>> criterion = PearsonLoss(loss_weight=6)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = False

    def __init__(self, resize: str = 'student', loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.resize = one_of('resize', resize, RESIZES)
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a single value has no deviation."""
        if size is None or images is None or images * math.prod(size) > 1:
            return None
        return 'a channel with a single value has no deviation; tap larger maps'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(pearson, resize=self.resize)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'resize={self.resize}, loss_weight={self.loss_weight}'
