"""Pixel-wise distillation (PI): the soft targets of every position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import soft_target as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    index_or_none,
    kept_positions,
    loss_weights,
    temperature,
    true_or_false,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.resizing import at_image_size
from mmkd_plugin.losses.soft_target import check_standardize, no_classes, yes_or_no_divergence
from mmkd_plugin.registry import MODELS


# traced too: the compiled formula keeps three maps instead of one, and takes three times as long
@with_fast_form(fast.pixel_wise, traced=True)
def pixel_wise(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    sigmoid: bool = False,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    standardize: bool = False,
) -> Tensor:
    """``tau^2 * mean over positions of KL`` between the distributions of the classes there.

    Args:
        student (Tensor): Logits of the student, (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        tau (float): Temperature of both distributions. Defaults to 1.0.
        sigmoid (bool): Whether the classes are independent: then the divergences of the channels
            are added up. Defaults to False, a softmax over them.
        labels (Tensor, optional): Integers (N, h, w), used with ``ignore_index`` only.
        ignore_index (int, optional): Positions with this label leave the sum and the count.
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 at each
            position. Defaults to False.

    Returns:
        Tensor: A scalar; 0 where no position is left.
    """
    check_shapes(student, teacher)
    with full_precision(student, teacher) as (s, t):
        if standardize:
            s, t = fast.standardised_logits(s, t)
        if sigmoid:
            kl = yes_or_no_divergence(s / tau, t / tau)
        else:
            log_s, log_t = (F.log_softmax(x / tau, dim=1) for x in (s, t))
            kl = (log_t.exp() * (log_t - log_s)).sum(1)  # (N, H, W)
        if ignore_index is None:
            return tau**2 * kl.sum() / max(kl.numel(), 1)
        kept = kept_positions(student, labels, ignore_index)
        return tau**2 * (kl * kept).sum() / kept.sum().clamp(min=1)


@MODELS.register_module()
class PixelWiseLoss(nn.Module):
    """Match the class distribution of every position (PI).

    A softmax over the C channels at each position; the loss is ``tau^2 / (N*H*W) * sum of KL``.
    Positions labelled ``ignore_index`` are left out of both the sum and the count.

    Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019 (its pixel-wise part).

    - paper: https://arxiv.org/abs/1903.04197
    - code: https://github.com/irfanICMLL/structure_knowledge_distillation

    Args:
        tau (float): Temperature of the softmax; a higher one is softer. Defaults to 1.0.
        ignore_index (int, optional): Label of the positions to leave out; ``forward`` then needs
            ``labels``. Defaults to None, every position counts.
        sigmoid (bool): For heads whose classes are independent, as those of detectors with a focal
            loss: each channel is a yes or no of its own, and the divergences of the channels are
            added up. Defaults to False.
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 at each
            position, see :class:`~mmkd_plugin.losses.SoftTargetLoss`. Defaults to False.
        upsample (bool): Whether logits are first resized to the size of the images, bilinearly;
            ``forward`` then needs ``image_size``. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. CIRKD uses 1 on
            this form; CWD's comparison uses 10 on a sum that is also divided by C. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - image_size: height and width of the padded images.
        - output: a scalar. Maps with a single channel always cost 0, unless ``sigmoid``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``tau`` is not above 0 or, in ``forward``, if shapes differ or labels that
            ``ignore_index`` needs are missing.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import PixelWiseLoss
        >>> criterion = PixelWiseLoss(ignore_index=255)
        >>> student = torch.randn(2, 19, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 19, 8, 16)
        >>> labels = torch.randint(0, 19, (2, 64, 128))
        >>> labels[:, :32] = 255
        >>> criterion(student, teacher, labels).backward()
        >>> bool(student.grad[:, :, :4].any()), bool(student.grad[:, :, 4:].any())
        (False, True)
    """

    needs_same_channels: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 1.0,
        ignore_index: int | None = None,
        sigmoid: bool = False,
        standardize: bool = False,
        upsample: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        self.ignore_index = index_or_none('ignore_index', ignore_index)
        self.sigmoid = true_or_false('sigmoid', sigmoid)
        self.standardize = check_standardize(standardize, sigmoid)
        self.upsample = true_or_false('upsample', upsample)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def compares_probabilities(self) -> bool:
        """Whether it compares nothing but the probabilities of classes."""
        return not self.sigmoid and not self.standardize

    @property
    def needs(self) -> tuple[str, ...]:
        """What ``forward`` needs besides the maps: labels, if there is something to ignore."""
        labels = () if self.ignore_index is None else ('labels',)
        return (*labels, 'image_size') if self.upsample else labels

    @property
    def needs_same_size(self) -> bool:
        """Whether the maps of both models must have one size before they are upsampled."""
        return not self.upsample

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single class is always 1."""
        return no_classes(channels, self.sigmoid, self.standardize)

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        labels: Tensor | None = None,
        image_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        if self.upsample:
            student, teacher = at_image_size(student, teacher, image_size)
        compare = partial(
            pixel_wise,
            tau=self.tau,
            sigmoid=self.sigmoid,
            labels=labels,
            ignore_index=self.ignore_index,
            standardize=self.standardize,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'tau={self.tau}, ignore_index={self.ignore_index}, sigmoid={self.sigmoid}, '
            f'standardize={self.standardize}, upsample={self.upsample}, '
            f'loss_weight={self.loss_weight}'
        )
