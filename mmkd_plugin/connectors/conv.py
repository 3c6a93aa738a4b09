"""A convolution between the student's map and the loss."""

from __future__ import annotations

from torch import Tensor, nn

from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class ConvConnector(nn.Conv2d):
    """A convolution that gives the student's map as many channels as the teacher's.

    It is the default connector of a loss that compares channels, where the numbers of channels
    differ. Both numbers come from a dry forward, so a config does not name them.

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's map.
        kernel_size (int): Odd size of the kernel; the map keeps its size. Defaults to 1.
        bias (bool): Whether the convolution has a bias. Defaults to True.
        norm (bool): Whether a batch norm follows, as in activation boundaries and in the feature
            overhaul. A bias before a batch norm has no effect. Defaults to False.
        act (bool): Whether a ReLU comes last, as in channel-wise distillation of features. Defaults
            to False.

    Shape:
        - student: ``(N, in_channels, H, W)``.
        - output: ``(N, out_channels, H, W)``.

    Raises:
        ValueError: If ``kernel_size`` is even or not positive.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.connectors import ConvConnector
        >>> ConvConnector(64, 256)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 256, 8, 8])
        >>> list(ConvConnector(64, 256, bias=False, norm=True).parameters())[0].shape
        torch.Size([256, 64, 1, 1])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        bias: bool = True,
        norm: bool = False,
        act: bool = False,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd to keep the map size, got {kernel_size}')
        if kernel_size < 1:
            raise ValueError(f'kernel_size must be at least 1, got {kernel_size}')
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.act = act

    def forward(self, student: Tensor) -> Tensor:
        """Converts a map.

        Args:
            student (Tensor): ``(N, in_channels, H, W)``.

        Returns:
            Tensor: ``(N, out_channels, H, W)``.
        """
        student = super().forward(student)
        student = student if self.norm is None else self.norm(student)
        return student.relu() if self.act else student

    @property
    def summary(self) -> str:
        """Name of the connector in the plan."""
        kernel = '×'.join(map(str, self.kernel_size))
        norm = '' if self.norm is None else ' + BN'
        act = ' + ReLU' if self.act else ''
        return f'{kernel} conv {self.in_channels}→{self.out_channels}{norm}{act}'
