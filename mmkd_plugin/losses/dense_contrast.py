"""Dense contrast (Af-DCD): tokens of positions and channel groups, told apart within patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.hint import hint
from mmkd_plugin.losses.masked_generation import kept
from mmkd_plugin.losses.numerics.autograd import keeping_gradients, keeps_its_gradient
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    share_below_one,
    temperature,
    weight,
    whole_number,
)
from mmkd_plugin.losses.numerics.drawing import fresh_seed
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import check_set_up, generator, run
from mmkd_plugin.losses.numerics.pooling import max_pool
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS


@keeps_its_gradient
def dense_contrast(
    generated: Tensor, teacher: Tensor, groups: int, patch: Sequence[int], pool: int, tau: float
) -> Tensor:
    """``sum of cross-entropies / (N*H*W)`` of the tokens of max-pooled maps.

    In each patch, a token is a group of channels at a position. Its logits are ``-L1 / tau`` to the
    teacher's token of the same place, which is the right one, and to all tokens of other groups.

    Args:
        generated (Tensor): The generated map, (N, C, H, W), in float32 or wider.
        teacher (Tensor): Map of the teacher, same shape and type.
        groups (int): How many groups the channels make.
        patch (Sequence[int]): Height and width of a patch of the pooled map, positions.
        pool (int): Side of the max-pooling.
        tau (float): Temperature.

    Returns:
        Tensor: A scalar.
    """
    ours, theirs = (tokens(x, groups, patch, pool) for x in (generated, teacher))
    logits = torch.cdist(ours, theirs, p=1) / -tau  # (patches, tokens, tokens)
    group = torch.arange(ours.shape[1], device=ours.device) % groups
    same = group[:, None] == group
    same.fill_diagonal_(False)
    right = logits.diagonal(dim1=1, dim2=2)
    every = logits.masked_fill(same, -math.inf).logsumexp(2)
    return (every - right).sum() * groups / max(right.numel(), 1)


def tokens(x: Tensor, groups: int, patch: Sequence[int], pool: int) -> Tensor:
    """Max-pool a map, and cut it into patches and these into tokens.

    Positions after the last whole window or patch are left out.

    Args:
        x (Tensor): (N, C, H, W).
        groups (int): See :func:`dense_contrast`.
        patch (Sequence[int]): See :func:`dense_contrast`.
        pool (int): See :func:`dense_contrast`.

    Returns:
        Tensor: (N * patches, positions * groups, C / groups).

    Raises:
        ValueError: If the channels cannot be divided, or there is not one whole patch.
    """
    batch, channels, height, width = x.shape
    if channels % groups:
        raise ValueError(f'{channels} channels cannot be divided into groups={groups}')
    rows, columns = height // (pool * patch[0]), width // (pool * patch[1])
    if not rows or not columns:
        raise ValueError(
            f'maps of {height}x{width} positions have no patch of {patch[0]}x{patch[1]} after '
            f'pooling by {pool}; lower `pool` or `patch`, or tap larger maps'
        )
    x = x[:, :, : rows * pool * patch[0], : columns * pool * patch[1]]
    x = x if pool == 1 else max_pool(x, (pool, pool))
    x = x.reshape(batch, groups, channels // groups, rows, patch[0], columns, patch[1])
    x = x.permute(0, 3, 5, 4, 6, 1, 2)  # image, patch, position, group, channel
    return x.reshape(batch * rows * columns, patch[0] * patch[1] * groups, channels // groups)


@MODELS.register_module()
class DenseContrastLoss(nn.Module):
    """Generate the teacher's map from a part of the student's, and tell its tokens apart (Af-DCD).

    ``fd * sum of (y - T)^2 / N + ctr * contrast(y, T)``, where the network of
    :class:`~mmkd_plugin.losses.MaskedGenerationLoss` generates y. :func:`dense_contrast` is the
    second part.

    Augmentation-Free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation,
    NeurIPS 2023.

    - paper: https://arxiv.org/abs/2312.04168
    - code: https://github.com/OSVAI/Af-DCD

    Args:
        groups (int): How many groups the channels make; it divides their number. Defaults to 16.
        patch (list[int]): Height and width of a patch, positions of the pooled map. Defaults to
            (4, 4).
        pool (int): Side of the max-pooling before the contrast, 1 for none. Defaults to 4.
        tau (float): Temperature. Defaults to 0.07.
        mask_ratio (float): Probability with which a position is hidden. Defaults to 0.75.
        fd (float): Factor on the squared differences. Defaults to 4e-5.
        ctr (float): Factor on the contrast. Defaults to 1e-3.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student.
        - seed: int64 of shape (), which decides the masks; None draws one.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes do not fit or
            ``setup`` was not called.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import DenseContrastLoss
        >>> criterion = DenseContrastLoss(groups=4)
        >>> criterion.setup([16], [16])
        >>> student = torch.randn(2, 16, 16, 32, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 16, 16, 32))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 16, 16, 32]))
    """

    needs: ClassVar[tuple[str, ...]] = ('seed',)
    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        groups: int = 16,
        patch: Sequence[int] = (4, 4),
        pool: int = 4,
        tau: float = 0.07,
        mask_ratio: float = 0.75,
        fd: float = 4e-5,
        ctr: float = 1e-3,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        if len(patch) != 2:
            raise ValueError(f'patch must be a height and a width, got {patch!r}')
        for name, values in dict(groups=[groups], patch=patch, pool=[pool]).items():
            for value in values:
                whole_number(name, value)
        self.groups, self.patch, self.pool = groups, tuple(patch), pool
        self.tau = temperature('tau', tau)
        self.mask_ratio = share_below_one('mask_ratio', mask_ratio)
        self.fd, self.ctr = weight('fd', fd), weight('ctr', ctr)
        self.loss_weight = loss_weights(loss_weight)
        self.generators = nn.ModuleList()

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Builds the generator of each map.

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
            seen = kept(s, seed, self.mask_ratio, stream=number)

            def compute(s: Tensor) -> Tensor:
                return self._apart(run(generate, s * seen), t)

            return keeping_gradients(compute, s, weights=generate.parameters())

        numbers = range(len(students))
        others = self.generators, numbers
        return sum_over_maps(compare, students, teachers, self.loss_weight, *others)

    def _apart(self, generated: Tensor, teacher: Tensor) -> Tensor:
        """Both parts of the loss of one map."""
        with full_precision(generated, teacher) as (y, t):
            apart = hint(y, t) * y.shape[1:].numel()
            contrast = dense_contrast(y, t, self.groups, self.patch, self.pool, self.tau)
            return self.fd * apart + self.ctr * contrast

    def extra_repr(self) -> str:
        names = ('groups', 'patch', 'pool', 'tau', 'mask_ratio', 'fd', 'ctr', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
