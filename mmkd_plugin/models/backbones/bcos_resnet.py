"""A ResNet of B-cos layers for mmseg and mmdet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmkd_plugin.models.bcos import BcosBatchNorm2d, BcosConv2d
from mmkd_plugin.registry import MODELS

#: Blocks in each stage.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
#: Range of accepted pixels: some augmentations brighten or darken them beyond 0 to 1.
PIXELS = (-0.5, 2)


class AddInverse(nn.Module):
    """Appends ``1 - x`` to an image, so that dark colours are as strong an input as bright ones.

    Shape:
        - input: ``(N, 3, H, W)``, RGB in [0, 1].
        - output: ``(N, 6, H, W)``.

    Raises:
        ValueError: In ``forward``, if the first batch is clearly not RGB in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.checked = False

    def forward(self, x: Tensor) -> Tensor:
        """Appends the inverse.

        Args:
            x (Tensor): Images ``(N, 3, H, W)``, RGB in [0, 1].

        Returns:
            Tensor: ``(N, 6, H, W)``.
        """
        if not (self.checked or torch.jit.is_tracing()):
            _check_pixels(x)
            self.checked = True
        return torch.cat([x, 1 - x], 1)


def _check_pixels(x: Tensor) -> None:
    low, high = (value.item() for value in x.detach().aminmax())
    if x.shape[1] != 3 or low < PIXELS[0] or high > PIXELS[1]:
        raise ValueError(
            f'BcosResNet takes RGB images in [0, 1], got {x.shape[1]} channels from {low:.3g} to '
            f'{high:.3g}. Give the data_preprocessor mean=[0, 0, 0], std=[255, 255, 255] and '
            'bgr_to_rgb=True'
        )


class BcosBlock(nn.Module):
    """A residual block: convolutions with norms, and the input added to their output.

    Args:
        in_channels (int): Channels of the input.
        channels (int): Channels inside; the output of a bottleneck has four times as many.
        stride (int): Stride of the first 3×3 convolution, and of the shortcut.
        dilation (int): Dilation of the first 3×3 convolution.
        bottleneck (bool): Whether the block is one 3×3 convolution between two 1×1 convolutions,
            instead of two 3×3 convolutions.
        b (float): The exponent B of the B-cos layers.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        bottleneck: bool,
        b: float,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_channels = 4 * channels if bottleneck else channels
        if bottleneck:
            self.conv1 = BcosConv2d(in_channels, channels, 1, b=b)
            self.conv2 = BcosConv2d(channels, channels, 3, stride, dilation, dilation, b=b)
            self.conv3 = BcosConv2d(channels, out_channels, 1, b=b)
            self.bn3 = BcosBatchNorm2d(out_channels)
        else:
            self.conv1 = BcosConv2d(in_channels, channels, 3, stride, dilation, dilation, b=b)
            self.conv2 = BcosConv2d(channels, channels, 3, padding=1, b=b)
        self.bn1, self.bn2 = BcosBatchNorm2d(channels), BcosBatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                BcosConv2d(in_channels, out_channels, 1, stride, b=b),
                BcosBatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x (Tensor): ``(N, in_channels, H, W)``.

        Returns:
            Tensor: ``(N, C', H', W')``.
        """
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        if self.bottleneck:
            out = self.bn3(self.conv3(out))
        return out + (x if self.downsample is None else self.downsample(x))


@MODELS.register_module()
class BcosResNet(BaseModule):
    """B-cos ResNet: a ResNet without biases and ReLUs, with average pooling and six input channels.

    Its data preprocessor needs ``mean=[0, 0, 0]``, ``std=[255, 255, 255]`` and ``bgr_to_rgb=True``.
    The backbone appends ``1 - x`` itself: ``backbone.add_inverse`` is the tap for explanations,
    because every map is a linear function of its six channels. The names of the modules are those
    of the authors' code, so ``init_cfg=dict(type='Pretrained', checkpoint=...)`` loads the authors'
    ImageNet weights.

    B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers, 2023.

    - paper: https://arxiv.org/abs/2306.10898
    - code: https://github.com/B-cos/B-cos-v2

    Args:
        depth (int): 18, 34, 50, 101 or 152.
        stem_channels (int): Channels of the first convolution. Defaults to 64.
        base_channels (int): Channels inside the blocks of the first stage; each further stage has
            twice as many. Defaults to 64.
        strides (Sequence[int]): Strides of the four stages. Defaults to ``(1, 2, 2, 2)``.
        dilations (Sequence[int]): Dilations of the four stages. Defaults to ``(1, 1, 1, 1)``.
        out_indices (Sequence[int]): Stages whose maps are returned. Defaults to ``(0, 1, 2, 3)``.
        b (float): The exponent B, from 1 on. Defaults to 2.
        norm_eval (bool): Whether the norms use their running variances in training, for pretrained
            weights and small batches. Defaults to False.
        init_cfg (dict, optional): Initialisation of the weights. Defaults to None: He's normal
            initialisation, as in the authors' code.

    Shape:
        - input: ``(N, 3, H, W)``, RGB in [0, 1].
        - outputs: a map for each of ``out_indices``, by default with strides 4, 8, 16 and 32.

    Raises:
        ValueError: If there is no such depth or, in ``forward``, the first batch is not in [0, 1].

    Examples:
        >>> import torch
        >>> backbone = BcosResNet(18, stem_channels=8, base_channels=8)
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 8, 16, 16), (1, 16, 8, 8), (1, 32, 4, 4), (1, 64, 2, 2)]
    """

    def __init__(
        self,
        depth: int,
        stem_channels: int = 64,
        base_channels: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        b: float = 2,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        if depth not in BLOCKS:
            raise ValueError(
                f'there is no B-cos ResNet-{depth}; depths: {", ".join(map(str, BLOCKS))}'
            )
        self.out_indices, self.norm_eval = tuple(out_indices), norm_eval
        self.add_inverse = AddInverse()
        self.conv1 = BcosConv2d(6, stem_channels, 7, stride=2, padding=3, b=b)
        self.bn1 = BcosBatchNorm2d(stem_channels)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        bottleneck, channels = depth >= 50, stem_channels
        for stage in range(max(self.out_indices) + 1):
            width, blocks = base_channels * 2**stage, []
            for number in range(BLOCKS[depth][stage]):
                stride = 1 if number else strides[stage]
                blocks.append(BcosBlock(channels, width, stride, dilations[stage], bottleneck, b))
                channels = 4 * width if bottleneck else width
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Runs the stages.

        Args:
            x (Tensor): Images ``(N, 3, H, W)``, RGB in [0, 1].

        Returns:
            tuple[Tensor, ...]: The maps of the stages in ``out_indices``.
        """
        x = self.pool(self.bn1(self.conv1(self.add_inverse(x))))
        maps = []
        for stage in range(max(self.out_indices) + 1):
            x = getattr(self, f'layer{stage + 1}')(x)
            maps.append(x)
        return tuple(maps[index] for index in self.out_indices)

    def train(self, mode: bool = True) -> BcosResNet:
        """Sets the mode; with ``norm_eval`` the norms stay in evaluation mode.

        Args:
            mode (bool): True for training, False for evaluation. Defaults to True.
        """
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, BcosBatchNorm2d):
                    module.eval()
        return self
