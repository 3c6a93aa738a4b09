"""Focal and global distillation (FGD): objects and background apart, and relations in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.autograd import keeps_its_gradient
from mmkd_plugin.losses.numerics.boxes import checked_boxes
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, weight
from mmkd_plugin.losses.numerics.checks import temperature as checked_temperature
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import check_set_up, run
from mmkd_plugin.losses.numerics.precision import common_type, full_precision
from mmkd_plugin.registry import MODELS


def attention(x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """``H*W * softmax of mean_C abs(x) / tau`` and ``C * softmax of mean_HW abs(x) / tau``.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        tau (float): Temperature.

    Returns:
        tuple[Tensor, Tensor]: Of the positions (N, 1, H, W), and of the channels (N, C, 1, 1).
    """
    size = x.abs()
    of_positions, of_channels = size.mean(1).flatten(1), size.mean((2, 3))
    return (
        ((of_positions / tau).softmax(1) * of_positions.shape[1]).view_as(x[:, :1]),
        ((of_channels / tau).softmax(1) * of_channels.shape[1])[:, :, None, None],
    )


def scale_masks(boxes: Tensor, image_size: Sequence[int], x: Tensor) -> tuple[Tensor, Tensor]:
    """Where objects are, each weighted by its size, and where none is.

    A box covers the positions from the floor to the ceiling of its corners on the map, both
    included. F is 1 / area of the smallest box that covers a position, else 0; B is 1 / the number
    of positions without a box there, else 0. The area counts what lies outside of the map too.

    Args:
        boxes (Tensor): (N, n, 4), x1, y1, x2, y2 in pixels; NaN is no box.
        image_size (Sequence[int]): Height and width of the padded images, pixels.
        x (Tensor): The map, (N, C, H, W).

    Returns:
        tuple[Tensor, Tensor]: F and B, (N, 1, H, W).
    """
    size = x.shape[2:]
    low = [(boxes[..., i] * size[1 - i] / image_size[1 - i]).floor() for i in (0, 1)]
    high = [(boxes[..., i + 2] * size[1 - i] / image_size[1 - i]).ceil() for i in (0, 1)]
    inside = [
        (low[i][..., None] <= place) & (place <= high[i][..., None])
        for i in (0, 1)
        for place in (torch.arange(size[1 - i], device=x.device),)
    ]
    share = 1 / ((high[0] + 1 - low[0]) * (high[1] + 1 - low[1]))
    covered = inside[1][..., None] & inside[0][..., None, :]  # (N, n, H, W)
    front = torch.where(covered, share[..., None, None], 0).amax(1, keepdim=True)
    behind = (front == 0).to(front.dtype)
    return front, behind / behind.sum((2, 3), keepdim=True).clamp(min=1)


@keeps_its_gradient
def focal(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    tau: float,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """``(sum of (alpha F + beta B) (S - T)^2 A_T + gamma * sum of abs(A_S - A_T)) / N``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W), in float32 or wider.
        teacher (Tensor): Map of the teacher, same shape and type.
        masks (tuple[Tensor, Tensor]): F and B, see :func:`scale_masks`.
        tau (float): Temperature of the attention.
        alpha (float): Factor on objects.
        beta (float): Factor on the background.
        gamma (float): Factor on the attention.

    Returns:
        Tensor: A scalar.
    """
    (positions_s, channels_s), (positions, channels) = (
        attention(student, tau),
        attention(teacher, tau),
    )
    front, behind = masks
    gap = (student - teacher).square() * ((alpha * front + beta * behind) * positions) * channels
    apart = (positions_s - positions).abs().sum() + (channels_s - channels).abs().sum()
    return (gap.sum() + gamma * apart) / max(len(student), 1)


class ContextBlock(nn.Module):
    """``x + W2 relu(LN(W1 c))`` with ``c = sum over positions of x * softmax(k * x)`` (GCNet).

    Args:
        channels (int): Channels of the map; half of them, at least one, lie between W1 and W2.
            W2 starts at 0.

    Shape:
        - x: (N, channels, H, W).
        - output: the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.k = nn.Conv2d(channels, 1, 1, bias=False)  # a bias means nothing to a softmax
        self.w1 = nn.Conv2d(channels, half, 1)
        self.norm = nn.LayerNorm([half, 1, 1])
        self.w2 = nn.Conv2d(half, channels, 1)
        nn.init.kaiming_normal_(self.k.weight, nonlinearity='relu')
        for x in (self.w2.weight, self.w2.bias):
            nn.init.zeros_(x)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what is drawn from all positions to each.

        Args:
            x (Tensor): (N, channels, H, W).

        Returns:
            Tensor: The same shape.
        """
        weights = self.k(x).flatten(2).softmax(2)  # (N, 1, H*W)
        context = torch.einsum('ncp,nop->nc', x.flatten(2), weights.to(x.dtype))[..., None, None]
        return x + self.w2(self.norm(self.w1(context)).relu())


@MODELS.register_module()
class FocalGlobalLoss(nn.Module):
    """Match objects, background, attention and context apart (FGD).

    Focal: squared differences, weighted by the teacher's attention, with objects by the inverse of
    their area and the background by the inverse of its; and the difference of the attention maps.
    Global: the squared difference behind two context blocks of the loss, one for each model.

    Focal and Global Knowledge Distillation for Detectors, CVPR 2022.

    - paper: https://arxiv.org/abs/2111.11837
    - code: https://github.com/yzd-v/FGD

    Args:
        temperature (float): Temperature of the attention. Defaults to 0.5.
        alpha (float): Factor on objects. Defaults to 1e-3.
        beta (float): Factor on the background. Defaults to 5e-4.
        gamma (float): Factor on the attention. Defaults to 5e-4.
        lam (float): Factor on the context. Defaults to 5e-6.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - padded_boxes: (N, n, 4), x1, y1, x2, y2 in pixels, NaN where an image has fewer boxes; or
          one tensor (n, 4) for each image.
        - image_size: height and width of the padded images in pixels.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ, boxes do
            not fit or ``setup`` was not called.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import FocalGlobalLoss
        >>> criterion = FocalGlobalLoss()
        >>> criterion.setup([16], [16])
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> boxes = [torch.tensor([[3.0, 5.0, 40.0, 20.0]]), torch.zeros(0, 4)]
        >>> loss = criterion(student, torch.randn(2, 16, 8, 8), boxes, (64, 64))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 16, 8, 8]))
    """

    needs: ClassVar[tuple[str, ...]] = ('padded_boxes', 'image_size')
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        temperature: float = 0.5,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        lam: float = 5e-6,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = checked_temperature('temperature', temperature)
        self.alpha, self.beta = weight('alpha', alpha), weight('beta', beta)
        self.gamma, self.lam = weight('gamma', gamma), weight('lam', lam)
        self.loss_weight = loss_weights(loss_weight)
        self.of_student, self.of_teacher = nn.ModuleList(), nn.ModuleList()

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Builds two context blocks for each map.

        Args:
            student_channels (list[int]): Channels of the student's maps, behind their connectors.
            teacher_channels (list[int]): Channels of the teacher's maps.
        """
        self.of_student = nn.ModuleList(map(ContextBlock, student_channels))
        self.of_teacher = nn.ModuleList(map(ContextBlock, teacher_channels))

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        padded_boxes: Tensor | Sequence[Tensor],
        image_size: Sequence[int],
    ) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        students, teachers = as_pairs(student, teacher)
        check_set_up(self.of_student, students)
        boxes = checked_boxes(padded_boxes, students[0])

        def compare(student: Tensor, teacher: Tensor, ours: nn.Module, theirs: nn.Module) -> Tensor:
            check_shapes(student, teacher)
            # once, so that the gradients of both parts meet in full precision
            student = student.to(common_type(student, teacher))
            teacher = teacher.detach()
            with full_precision(student, teacher) as (s, t):
                masks = scale_masks(boxes, image_size, s)
                value = focal(s, t, masks, self.temperature, self.alpha, self.beta, self.gamma)
            apart = run(ours, student).to(value.dtype) - run(theirs, teacher).to(value.dtype)
            return value + self.lam * apart.square().sum() / max(len(student), 1)

        blocks = self.of_student, self.of_teacher
        return sum_over_maps(compare, students, teachers, self.loss_weight, *blocks)

    def extra_repr(self) -> str:
        names = ('temperature', 'alpha', 'beta', 'gamma', 'lam', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
