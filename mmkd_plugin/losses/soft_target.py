"""Soft targets: Hinton's distillation, and the formula that the pixel-wise loss shares with it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    labels_at,
    loss_weights,
    positive_number,
)
from mmkd_plugin.losses.numerics.divergence import divergence
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import common_type
from mmkd_plugin.registry import MODELS


def soft_targets(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    ndims: tuple[int, ...] = (2, 4),
    sigmoid: bool = False,
) -> Tensor:
    """``tau^2 * mean over positions of KL`` between the distributions of the classes there.

    With a softmax over the channels, or with a sigmoid in each: then the divergences of the
    channels are added up.

    Args:
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        tau (float): Temperature of both distributions. Default: 1.0.
        labels (Tensor, optional): Integers (N, h, w), used with ``ignore_index`` only.
        ignore_index (int, optional): Positions with this label leave the sum and the count.
        ndims (tuple[int, ...]): The numbers of dimensions to accept. Default: (2, 4).
        sigmoid (bool): Whether the classes are independent. Default: False.

    Returns:
        Tensor: A scalar; 0 where no position is left.
    """
    check_shapes(student, teacher, ndims=ndims)
    weight = tau**2 / max(student.shape[0] * student.shape[2:].numel(), 1)
    if ignore_index is not None:
        kept = kept_positions(student, labels, ignore_index).to(common_type(student, teacher))
        weight = kept.flatten(1)[:, None] * (tau**2 / kept.sum().clamp(min=1))
    if student.dim() == 4:
        student, teacher = student.flatten(2), teacher.flatten(2)
    return divergence(student, teacher, weight, tau, dim=1, sigmoid=sigmoid)


def check_sigmoid(value: bool) -> bool:
    """Return ``value`` if it is a bool, else raise.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f'sigmoid must be True or False, got {value!r}')
    return value


def kept_positions(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Where the labels, resized to the logits by nearest, are not ``ignore_index``.

    Args:
        logits (Tensor): Logits, (N, C, H, W); only the shape is read.
        labels (Tensor): Integer labels, (N, h, w).
        ignore_index (int): The label of the positions to leave out.

    Returns:
        Tensor: Booleans, (N, H, W).

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If they are missing, or their shape does not fit.
    """
    if labels is None:
        raise ValueError(
            f'ignore_index={ignore_index} needs `labels`; give them, or leave `ignore_index` out'
        )
    return labels_at(logits, labels) != ignore_index


@MODELS.register_module()
class SoftTargetLoss(nn.Module):
    """Match the teacher's softened class distribution (Hinton's KD).

    ``tau^2 / N * sum of KL`` for the logits of a classifier; on a map the same as
    :class:`~mmkd_plugin.losses.PixelWiseLoss`, which shares the implementation.

    Distilling the Knowledge in a Neural Network, NIPS 2014 Deep Learning Workshop.

    - paper: https://arxiv.org/abs/1503.02531
    - code: none by the authors

    Args:
        tau (float): Temperature of the softmax; higher is softer. Default: 4.0.
        sigmoid (bool): For heads whose classes are independent: each channel is a yes or no of
            its own, and the divergences of the channels are added up. Default: False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Default: 1.0.

    Shape:
        - student: (N, C) or (N, C, H, W), or a sequence of such tensors (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar. A single channel always costs 0, unless ``sigmoid``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``tau`` is not above 0 or, in ``forward``, if shapes differ.

    Example:
        >>> import torch
        >>> from mmkd_plugin.losses import SoftTargetLoss
        >>> criterion = SoftTargetLoss(tau=4, loss_weight=0.9)
        >>> student = torch.randn(16, 100, requires_grad=True)
        >>> teacher = torch.randn(16, 100)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([16, 100]))
    """

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = True
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True

    def __init__(self, tau: float = 4.0, sigmoid: bool = False, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.tau = positive_number('tau', tau)
        self.sigmoid = check_sigmoid(sigmoid)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def compares_probabilities(self) -> bool:
        """Whether it compares the probabilities of classes alone."""
        return not self.sigmoid

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(soft_targets, tau=self.tau, sigmoid=self.sigmoid)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'tau={self.tau}, sigmoid={self.sigmoid}, loss_weight={self.loss_weight}'
