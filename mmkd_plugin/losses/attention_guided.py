"""Attention-guided and non-local distillation (FBKD): attended places, means and relations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.focal_global import attention
from mmkd_plugin.losses.numerics.autograd import keeping_gradients
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, whole_number
from mmkd_plugin.losses.numerics.checks import temperature as checked_temperature
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import check_set_up, normalised, run
from mmkd_plugin.losses.numerics.precision import common_type, full_precision, no_autocast
from mmkd_plugin.registry import MODELS

#: The authors' factors: on attended places and on relations, and on both means.
PLACES, MEANS = 7e-5, 4e-3


class NonLocalBlock(nn.Module):
    """``x + BN(W(theta(x)^T phi(x) / n * g(x)))``, with n positions of the pooled phi and g.

    The batch norm starts at 0, so that at first a block gives its input.

    Args:
        channels (int): Channels of the map.
        reduction (int): Their number divided by that inside.
        pool (int): Side of the max-pooling of phi and g; smaller on smaller maps.

    Shape:
        - x: (N, C, H, W).
        - output: the same.
    """

    def __init__(self, channels: int, reduction: int, pool: int) -> None:
        super().__init__()
        inside = max(channels // reduction, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inside, 1) for _ in range(3))
        self.w, self.norm, self.pool = (
            nn.Conv2d(inside, channels, 1),
            nn.BatchNorm2d(channels),
            pool,
        )
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with what each position draws from all others."""
        kernel = [min(self.pool, side) for side in x.shape[2:]]
        phi, g = (F.max_pool2d(layer(x), kernel).flatten(2) for layer in (self.phi, self.g))
        theta = self.theta(x)
        drawn = theta.flatten(2).mT @ phi @ g.mT / phi.shape[2]
        return x + normalised(self.norm, self.w(drawn.mT.reshape(theta.shape)))


class Adaption(nn.Module):
    """The layers of one level: from the student's channels to the teacher's, and both blocks.

    Args:
        student (int): Channels of the student's map.
        teacher (int): Channels of the teacher's map.
        reduction (int): See :class:`NonLocalBlock`.
        pool (int): See :class:`NonLocalBlock`.
    """

    def __init__(self, student: int, teacher: int, reduction: int, pool: int) -> None:
        super().__init__()
        self.values, self.relations = (nn.Conv2d(student, teacher, 1) for _ in range(2))
        self.channels, self.positions = nn.Linear(student, teacher), nn.Conv2d(1, 1, 3, padding=1)
        self.of_student = NonLocalBlock(student, reduction, pool)
        self.of_teacher = NonLocalBlock(teacher, reduction, pool)


@MODELS.register_module()
class AttentionGuidedLoss(nn.Module):
    """Match attended places, means and non-local relations (FBKD).

    ``7e-5 * norm(sqrt(M) * (T - A(S))) + 4e-3 * norm(mean_HW T - L(mean_HW S)) + 4e-3 *
    norm(mean_C T - c(mean_C S)) + 7e-5 * norm(R(T) - B(R'(S)))``: M is the mean of both models'
    attention over positions, A, B and L are linear maps of channels, c a 3×3 convolution, R and R'
    non-local blocks. The norms are those of whole batches, and not squared. All layers belong to
    the loss; R learns on the teacher's map.

    Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and
    Efficient Detectors, ICLR 2021.

    - paper: https://openreview.net/forum?id=uKhGRvM8QNH
    - code: https://github.com/ArchipLab-LinfengZhang/Object-Detection-Knowledge-Distillation-ICLR2021

    Args:
        reduction (int | list[int]): Channels divided by those inside a non-local block, or one
            number for each map. Defaults to 4.
        pool (int | list[int]): Side of the max-pooling in a non-local block, or one for each map.
            Defaults to 8.
        temperature (float): Temperature of the attention. Defaults to 0.5.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W), of the same sizes.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes differ or ``setup``
            was not called.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import AttentionGuidedLoss
        >>> criterion = AttentionGuidedLoss(pool=2)
        >>> criterion.setup([8], [16])
        >>> student = torch.randn(2, 8, 8, 8, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 16, 8, 8))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 8, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        reduction: int | Sequence[int] = 4,
        pool: int | Sequence[int] = 8,
        temperature: float = 0.5,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.reduction = _whole('reduction', reduction)
        self.pool = _whole('pool', pool)
        self.temperature = checked_temperature('temperature', temperature)
        self.loss_weight = loss_weights(loss_weight)
        self.adaptions = nn.ModuleList()

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Builds the layers of each map.

        Args:
            student_channels (list[int]): Channels of the student's maps.
            teacher_channels (list[int]): Channels of the teacher's maps.

        Raises:
            ValueError: If there are not as many numbers in a list as maps.
        """
        count = len(student_channels)
        settings = [_each(name, getattr(self, name), count) for name in ('reduction', 'pool')]
        pairs = zip(student_channels, teacher_channels, *settings)
        self.adaptions = nn.ModuleList(Adaption(*one) for one in pairs)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        students, teachers = as_pairs(student, teacher)
        check_set_up(self.adaptions, students)
        return sum_over_maps(self._compare, students, teachers, self.loss_weight, self.adaptions)

    def _compare(self, student: Tensor, teacher: Tensor, layers: Adaption) -> Tensor:
        check_shapes(student, teacher, same_channels=False)
        apart = partial(self._apart, teacher=teacher.detach(), layers=layers)
        return keeping_gradients(apart, student, weights=layers.parameters())

    def _apart(self, student: Tensor, teacher: Tensor, layers: Adaption) -> Tensor:
        dtype = common_type(student, teacher)
        with full_precision(student, teacher) as (s, t):
            places = sum(attention(x.detach(), self.temperature)[0] for x in (s, t)) / 2
            channels, positions = s.mean((2, 3)), s.mean(1, keepdim=True)
            of_channels, of_positions = t.mean((2, 3)), t.mean(1, keepdim=True)
        related = run(layers.relations, run(layers.of_student, student))
        gaps = (
            (PLACES, places.sqrt(), teacher, run(layers.values, student)),
            (MEANS, 1, of_channels, run(layers.channels, channels)),
            (MEANS, 1, of_positions, run(layers.positions, positions)),
            (PLACES, 1, run(layers.of_teacher, teacher), related),
        )
        with no_autocast(student.device.type):
            return sum(
                factor * torch.linalg.vector_norm(weight * (t.to(dtype) - s.to(dtype)))
                for factor, weight, t, s in gaps
            )

    def extra_repr(self) -> str:
        names = ('reduction', 'pool', 'temperature', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def _whole(name: str, value: int | Sequence[int]) -> int | list[int]:
    """Checks a number, or one for each map."""
    if not isinstance(value, (list, tuple)):
        return whole_number(name, value)
    return [whole_number(name, one) for one in value]


def _each(name: str, value: int | list[int], count: int) -> list[int]:
    """One number for each map."""
    if isinstance(value, int):
        return [value] * count
    if len(value) != count:
        raise ValueError(f'{name} has {len(value)} numbers for {count} maps')
    return value
