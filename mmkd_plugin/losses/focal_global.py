"""Focal and global distillation (FGD): objects and background apart, and relations in the image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import focal_global as fast
from mmkd_plugin.losses.numerics.boxes import checked_boxes
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, weight
from mmkd_plugin.losses.numerics.checks import temperature as checked_temperature
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import check_set_up, run
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


def attention(x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """``H*W * softmax of mean_C abs(x) / tau`` and ``C * softmax of mean_HW abs(x) / tau``.

    Args:
        x (Tensor): (N, C, H, W), in float32 or wider.
        tau (float): Temperature.

    Returns:
        tuple[Tensor, Tensor]: Of the positions (N, 1, H, W), and of the channels (N, C, 1, 1).
    """
    size = x.abs().flatten(2)
    of_positions, of_channels = attention_of_means(size.mean(1, True), size.mean(2, True), tau)
    return of_positions.view_as(x[:, :1]), of_channels[..., None]


def attention_of_means(places: Tensor, channels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The :func:`attention` for the means over the channels (N, 1, n) and positions (N, C, 1)."""
    return (
        (places / tau).softmax(2) * places.shape[2],
        (channels / tau).softmax(1) * channels.shape[1],
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
    there = (low[0] <= high[0]) & (low[1] <= high[1])  # not of NaN
    share = 1 / ((high[0] + 1 - low[0]) * (high[1] + 1 - low[1])).masked_fill(~there, torch.inf)
    rows, columns = (x.to(share.dtype) for x in inside[::-1])
    covered = rows[..., None] * (columns * share[..., None])[..., None, :]  # (N, n, H, W)
    front = covered.amax(1, keepdim=True)
    behind = (front == 0).to(front.dtype)
    return front, behind / behind.sum((2, 3), keepdim=True).clamp(min=1)


def _in_pieces(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    blocks: Sequence[nn.Module],
    tau: float,
    gamma: float,
    lam: float,
) -> Tensor:
    of_means = partial(attention_of_means, tau=tau)
    return fast.focal_global(student, teacher, weights, blocks, of_means, gamma, lam)


@with_fast_form(_in_pieces)
def focal_global(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    blocks: Sequence[nn.Module],
    tau: float,
    gamma: float,
    lam: float,
) -> Tensor:
    """``sum of (w A_T (S - T)^2 + gamma abs(A_S - A_T) + lam (ctx_S(S) - ctx_T(T))^2) / N``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.
        weights (Tensor): ``w = alpha F + beta B``, see :func:`scale_masks`, (N, 1, H, W).
        blocks (Sequence[nn.Module]): The :class:`ContextBlock` of the student and of the teacher.
        tau (float): Temperature of the :func:`attention`.
        gamma (float): Factor on the attention.
        lam (float): Factor on the context.

    Returns:
        Tensor: A scalar.
    """
    with full_precision(student, teacher) as (s, t):
        positions, channels = attention(t, tau)
        gap = (s - t).square() * (weights * positions) * channels
        pairs = zip(attention(s, tau), (positions, channels))
        apart = sum((a - b).abs().sum() for a, b in pairs)
        ours, theirs = (run(block, x).to(s.dtype) for block, x in zip(blocks, (s, t)))
        value = gap.sum() + gamma * apart + lam * (ours - theirs).square().sum()
        return value / max(len(s), 1)


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
        return x + self.added(torch.einsum('ncp,nop->nc', x.flatten(2), weights)[..., None, None])

    def added(self, context: Tensor) -> Tensor:
        """What is added for a context, both (N, channels, 1, 1)."""
        context = context.to(self.w1.weight.dtype)
        return self.w2(self.norm(self.w1(context)).relu())


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

        def compare(student: Tensor, teacher: Tensor, *blocks: nn.Module) -> Tensor:
            check_shapes(student, teacher)
            with full_precision(student, teacher) as (s, _):
                front, behind = scale_masks(boxes, image_size, s)
            weights = self.alpha * front + self.beta * behind
            return focal_global(
                student, teacher, weights, blocks, self.temperature, self.gamma, self.lam
            )

        blocks = self.of_student, self.of_teacher
        return sum_over_maps(compare, students, teachers, self.loss_weight, *blocks)

    def extra_repr(self) -> str:
        names = ('temperature', 'alpha', 'beta', 'gamma', 'lam', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
