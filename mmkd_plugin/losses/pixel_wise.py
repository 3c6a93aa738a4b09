"""Pixel-wise distillation (PI): the soft targets of every position."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import loss_weights, positive_number
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.soft_target import check_sigmoid, soft_targets
from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class PixelWiseLoss(nn.Module):
    """Match the class distribution of every position (PI).

    A softmax over the C channels at each position; the loss is ``tau^2 / (N*H*W) * sum of KL``.
    Positions that ``ignore_index`` marks leave both the sum and the count.

    Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019 (its pixel-wise part).

    - paper: https://arxiv.org/abs/1903.04197
    - code: https://github.com/irfanICMLL/structure_knowledge_distillation

    Args:
        tau (float): Temperature of the softmax; higher is softer. Default: 1.0.
        ignore_index (int, optional): Label of the positions to leave out; ``forward`` then needs
            ``labels``. Default: None, every position counts.
        sigmoid (bool): For heads whose classes are independent, as those of detectors with a focal
            loss: each channel is a yes or no of its own, and the divergences of the channels are
            added up. Default: False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. CIRKD uses 1 on
            this form; CWD's comparison uses 10 on a sum that is also divided by C. Default: 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - output: a scalar. Maps with a single channel always cost 0, unless ``sigmoid``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``tau`` is not above 0 or, in ``forward``, if shapes differ or labels that
            ``ignore_index`` needs are missing.

    Example:
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

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = True
    #: Whether student and teacher must have equal height and width. Read by the Distiller.
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        tau: float = 1.0,
        ignore_index: int | None = None,
        sigmoid: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        if ignore_index is not None and type(ignore_index) is not int:
            raise TypeError(f'ignore_index must be an int or None, got {ignore_index!r}')
        self.tau = positive_number('tau', tau)
        self.ignore_index = ignore_index
        self.sigmoid = check_sigmoid(sigmoid)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs(self) -> tuple[str, ...]:
        """What ``forward`` needs besides the maps: labels, if there is something to ignore."""
        return () if self.ignore_index is None else ('labels',)

    @property
    def compares_probabilities(self) -> bool:
        """Whether it compares the probabilities of classes alone."""
        return not self.sigmoid

    def forward(self, student: Maps, teacher: Maps, labels: Tensor | None = None) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(
            soft_targets,
            tau=self.tau,
            labels=labels,
            ignore_index=self.ignore_index,
            ndims=(4,),
            sigmoid=self.sigmoid,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'tau={self.tau}, ignore_index={self.ignore_index}, sigmoid={self.sigmoid}, '
            f'loss_weight={self.loss_weight}'
        )
