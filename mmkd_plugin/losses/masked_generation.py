"""Masked generation (MGD): the teacher's map from a student's map with holes."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from mmkd_plugin.losses.hint import hint
from mmkd_plugin.losses.numerics.autograd import keeping_gradients
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    one_of,
    share_below_one,
)
from mmkd_plugin.losses.numerics.drawing import fresh_seed, uniform
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import check_set_up, generator, run
from mmkd_plugin.losses.numerics.precision import no_autocast
from mmkd_plugin.registry import MODELS

MASKS = ('position', 'channel')


def masked_generation(
    student: Tensor, teacher: Tensor, kept: Tensor | float, generate: nn.Module
) -> Tensor:
    """``sum of (G(S * M) - T)^2 / N``.

    Args:
        student (Tensor): Map of the student, (N, C, H, W).
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.
        kept (Tensor | float): M, 1 where the student's map is seen and 0 where it is hidden: of a
            shape that broadcasts to that of the maps.
        generate (nn.Module): G, from (N, C, H, W) to the same shape.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)

    def compute(student: Tensor) -> Tensor:
        generated = run(generate, student * kept)
        with no_autocast(student.device.type):
            return hint(generated, teacher) * teacher.shape[1:].numel()

    return keeping_gradients(compute, student, weights=generate.parameters())


def kept(
    x: Tensor, seed: Tensor, mask_ratio: float, mask: str = 'position', stream: int = 0
) -> Tensor:
    """A random mask of a map: 0 with the probability ``mask_ratio``, else 1.

    Args:
        x (Tensor): The map, (N, C, H, W).
        seed (Tensor): A whole number, int64 of shape (); it decides the mask.
        mask_ratio (float): See :class:`MaskedGenerationLoss`.
        mask (str): See :class:`MaskedGenerationLoss`. Defaults to ``'position'``.
        stream (int): Number of the map, for each has a mask of its own. Defaults to 0.

    Returns:
        Tensor: (N, 1, H, W), or (N, C, 1, 1) for ``'channel'``, in the type of the map.
    """
    batch, channels, height, width = x.shape
    shape = (batch, 1, height, width) if mask == 'position' else (batch, channels, 1, 1)
    return (uniform(seed, shape, stream) >= mask_ratio).to(x.dtype)


@MODELS.register_module()
class MaskedGenerationLoss(nn.Module):
    """Generate the teacher's map from a part of the student's (MGD).

    A random part of the student's map is hidden, and a network G of the loss generates the whole
    map of the teacher from the rest: ``sum of (G(S * M) - T)^2 / N``, with M = 0 at hidden places.
    G is 3×3 convolution, ReLU, 3×3 convolution, for each map its own, as wide as the teacher.

    Masked Generative Distillation, ECCV 2022.

    - paper: https://arxiv.org/abs/2205.01529
    - code: https://github.com/yzd-v/MGD

    Args:
        mask_ratio (float): Probability with which a place is hidden, at least 0 and below 1.
            Defaults to 0.65.
        mask (str): What is hidden: ``'position'``, all channels of a position, or ``'channel'``,
            all positions of a channel. Defaults to ``'position'``.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The loss is a
            sum over the map, so the authors' factors are small, such as 2e-5. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - seed: int64 of shape (), which decides the masks; None draws one.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ or
            ``setup`` was not called.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import MaskedGenerationLoss
        >>> criterion = MaskedGenerationLoss(mask_ratio=0.75, loss_weight=2e-5)
        >>> criterion.setup([16], [16])
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 16, 8, 8))
        >>> loss.backward()
        >>> loss.shape, criterion.generators[0][0].weight.grad.shape
        (torch.Size([]), torch.Size([16, 16, 3, 3]))
    """

    needs: ClassVar[tuple[str, ...]] = ('seed',)
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        mask_ratio: float = 0.65,
        mask: Literal['position', 'channel'] = 'position',
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.mask_ratio = share_below_one('mask_ratio', mask_ratio)
        self.mask = one_of('mask', mask, MASKS)
        self.loss_weight = loss_weights(loss_weight)
        self.generators = nn.ModuleList()

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Builds G for each map.

        Args:
            student_channels (list[int]): Channels of the student's maps, behind their connectors.
            teacher_channels (list[int]): Channels of the teacher's maps.
        """
        self.generators = nn.ModuleList(map(generator, teacher_channels))

    def forward(self, student: Maps, teacher: Maps, seed: Tensor | None = None) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        students, teachers = as_pairs(student, teacher)
        check_set_up(self.generators, students)
        seed = fresh_seed(students[0].device) if seed is None else seed

        def compare(s: Tensor, t: Tensor, generate: nn.Module, number: int) -> Tensor:
            check_shapes(s, t)
            seen = kept(s, seed, self.mask_ratio, self.mask, number)
            return masked_generation(s, t, seen, generate)

        numbers = range(len(students))
        return sum_over_maps(
            compare, students, teachers, self.loss_weight, self.generators, numbers
        )

    def extra_repr(self) -> str:
        return f'mask_ratio={self.mask_ratio}, mask={self.mask}, loss_weight={self.loss_weight}'
