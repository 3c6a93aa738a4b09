"""Review distillation (ReviewKD): each level of the student reviews the deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class ReviewFusion(nn.Module):
    """Fuses each of the student's maps with what the deeper ones have left (ReviewKD).

    It goes from the last map to the first: ``z = BN(conv1x1(S))``. All but the last are fused with
    the residual y of the deeper level, resized by nearest: ``z * a1 + y * a2`` with
    ``a = sigmoid(conv1x1([z; y]))``. Then z is the residual of the level, and ``BN(conv3x3(z))``
    its output. It takes all maps of a term together.

    Distilling Knowledge via Knowledge Review, CVPR 2021.

    - paper: https://arxiv.org/abs/2104.09044
    - code: https://github.com/dvlab-research/ReviewKD

    Args:
        in_channels (list[int]): Channels of the student's maps, from the largest map to the
            deepest level.
        out_channels (list[int]): Channels of the teacher's maps.
        mid_channels (int): Channels of the residuals. Defaults to 256.

    Shape:
        - maps: ``(N, in_channels[i], H_i, W_i)`` for each level.
        - output: ``(N, out_channels[i], H_i, W_i)`` for each level.

    Raises:
        ValueError: If the numbers of levels differ, or ``mid_channels`` is below 1.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.connectors import ReviewFusion
        >>> fusion = ReviewFusion([8, 16], [32, 64], mid_channels=4)
        >>> [tuple(x.shape) for x in fusion([torch.rand(2, 8, 8, 8), torch.rand(2, 16, 4, 4)])]
        [(2, 32, 8, 8), (2, 64, 4, 4)]
    """

    takes_all_maps: ClassVar[bool] = True

    def __init__(
        self, in_channels: Sequence[int], out_channels: Sequence[int], mid_channels: int = 256
    ) -> None:
        super().__init__()
        if len(in_channels) != len(out_channels):
            raise ValueError(
                f'in_channels and out_channels must be equally many, got {len(in_channels)} and '
                f'{len(out_channels)}'
            )
        if mid_channels < 1:
            raise ValueError(f'mid_channels must be at least 1, got {mid_channels}')
        self.mid_channels = mid_channels
        self.inner = nn.ModuleList(_conv(c, mid_channels, 1) for c in in_channels)
        self.outer = nn.ModuleList(_conv(mid_channels, c, 3) for c in out_channels)
        self.attention = nn.ModuleList(nn.Conv2d(2 * mid_channels, 2, 1) for _ in in_channels[:-1])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fuses the maps of the student.

        Args:
            maps (Sequence[Tensor]): ``(N, in_channels[i], H_i, W_i)``, the deepest level last.

        Returns:
            list[Tensor]: ``(N, out_channels[i], H_i, W_i)``.
        """
        residual, out = None, []
        for level in reversed(range(len(maps))):
            z = self.inner[level](maps[level])
            if residual is not None:
                y = F.interpolate(residual, size=z.shape[2:], mode='nearest')
                ours, deeper = self.attention[level](torch.cat([z, y], 1)).sigmoid().split(1, 1)
                z = z * ours + y * deeper
            residual = z
            out.append(self.outer[level](z))
        return out[::-1]

    @property
    def summary(self) -> str:
        """Name of the connector in the plan."""
        return f'ReviewFusion of {len(self.inner)} maps, {self.mid_channels} channels'


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """A convolution without bias, and a batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
