"""Connectors: modules between the student's map and the loss."""

from __future__ import annotations

from torch import Tensor, nn

from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class ConvConnector(nn.Conv2d):
    """A convolution that gives the student's map as many channels as the teacher's.

    Inferred where a loss compares channels and the counts differ; the counts come from a dry
    forward and are never typed.

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's map.
        kernel_size (int): Odd size of the kernel; the map keeps its size. Defaults to 1.
        bias (bool): Whether to add a bias. Defaults to True.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: ``(N, out_channels, H, W)``.

    Raises:
        ValueError: If ``kernel_size`` is even.

    Examples:
        >>> import torch
        >>> ConvConnector(64, 256)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 256, 8, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = True
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd to keep the map size, got {kernel_size}')
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def forward(self, student: Tensor) -> Tensor:
        """Converts ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        return super().forward(student)
