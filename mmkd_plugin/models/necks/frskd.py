"""The self-teachers of FRSKD: bidirectional feature pyramids that refine a model's own maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import positive_number
from mmkd_plugin.registry import MODELS

EPS = 1e-6

#: Layers, levels and convolutions in a row beyond which a typing error would take all memory.
MOST_LAYERS = 1000


# Classification form ------------------------------------------------------------------------------


def conv_block(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1
) -> nn.Sequential:
    """A convolution without bias, BN and ReLU.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Odd size of the kernel. Defaults to 1.
        stride (int): Stride. Defaults to 1.
    """
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_block(channels: int, depth: int) -> nn.Sequential:
    """Depthwise separable 3×3 convolutions with BN, and a ReLU between two of them.

    Args:
        channels (int): Channels of input and output.
        depth (int): Number of separable convolutions.
    """
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.ReLU(inplace=True)] if number else []
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers)


def fused(weights: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The mean of maps with the weights ``relu(w) / (sum of relu(w) + 1e-6)``.

    Args:
        weights (Tensor): One number w for each map.
        maps (Sequence[Tensor]): Maps of one shape.

    Returns:
        Tensor: A map of that shape.
    """
    weights = weights.relu()
    weights = weights / (weights.sum() + EPS)
    # A weight has no dimensions, so a weight in float32 leaves a map in bfloat16.
    terms = [weight * x for weight, x in zip(weights, maps)]
    return sum(terms[1:], start=terms[0])


def pool_down(x: Tensor, size: Sequence[int]) -> Tensor:
    """3×3 max-pooling to a given size, with the zero padding of TensorFlow's 'same'.

    The stride is 2 from one level of a pyramid to the next, and 1 where a dilated stage keeps the
    size. If the sizes do not halve exactly, a nearest-neighbour resize follows.

    Args:
        x (Tensor): ``(N, C, H, W)``, not below 0.
        size (Sequence[int]): Height and width of the output.

    Returns:
        Tensor: ``(N, C, *size)``.
    """
    strides = [max(1, round(old / new)) for old, new in zip(x.shape[2:], size)]
    padding: list[int] = []
    for old, stride in zip(x.shape[:1:-1], strides[::-1]):
        extra = max((math.ceil(old / stride) - 1) * stride + 3 - old, 0)
        padding += [extra // 2, extra - extra // 2]
    x = F.max_pool2d(F.pad(x, padding), 3, stride=strides)
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, size=tuple(size))


@MODELS.register_module()
class BiFPNSelfTeacher(nn.Module):
    """Auxiliary pyramid that refines the maps of a classifier's stages (FRSKD).

    It has a top-down and a bottom-up path, with learnt, normalised weights where maps meet. The
    outputs have the order, number and sizes of the inputs; their channels follow those of the
    inputs. The maps before the last ReLU (for ``OverhaulLoss``) are the outputs of ``top_down.0``,
    ``bottom_up.0``, ``bottom_up.1`` and so on.

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021
    (the network of its experiments on classification).

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        in_channels (Sequence[int]): Channels of the inputs, at least two, from high to low
            resolution.
        width (float): Channels of an output as a multiple of those of its input. Defaults to 2.
        depth (int): Separable convolutions in each node. Defaults to 2.
        out_channels (int, optional): Channels of all outputs, as in the paper's ablation; ``width``
            then has no effect, and maps go to the next level without a convolution. Defaults to
            None.

    Shape:
        - inputs: maps ``(N, C_i, H_i, W_i)`` after a ReLU, of any sizes.
        - outputs: maps ``(N, width * C_i, H_i, W_i)``, not below 0.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument cannot be used or, in ``forward``, the maps do not fit.

    Examples:
        >>> import torch
        >>> neck = BiFPNSelfTeacher([16, 32, 64])
        >>> maps = [torch.rand(2, 16, 32, 32), torch.rand(2, 32, 16, 16), torch.rand(2, 64, 8, 8)]
        >>> [tuple(x.shape) for x in neck(maps)]
        [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: float = 2,
        depth: int = 2,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = channel_counts(in_channels)
        if len(self.in_channels) < 2:
            raise ValueError(
                f'in_channels must name at least two maps, got {self.in_channels}; tap more stages'
            )
        count('depth', depth, most=MOST_LAYERS)
        if out_channels is None:
            self.out_channels = [int(positive_number('width', width) * c) for c in self.in_channels]
            if 0 in self.out_channels:
                raise ValueError(
                    f'width={width} leaves no channel of {min(self.in_channels)}; take a larger one'
                )
        else:
            self.out_channels = [count('out_channels', out_channels)] * len(self.in_channels)
        out, levels = self.out_channels, range(len(self.in_channels))
        between = conv_block if out_channels is None else nn.Identity
        self.lateral = nn.ModuleList(conv_block(self.in_channels[i], out[i]) for i in levels)
        self.lateral2 = nn.ModuleList(conv_block(self.in_channels[i], out[i]) for i in levels[1:])
        self.from_above = nn.ModuleList(between(out[i + 1], out[i]) for i in levels[:-1])
        self.from_below = nn.ModuleList(between(out[i - 1], out[i]) for i in levels[1:])
        self.top_down = nn.ModuleList(separable_block(out[i], depth) for i in levels[:-1])
        self.bottom_up = nn.ModuleList(separable_block(out[i], depth) for i in levels[1:])
        self.top_down_weights = nn.ParameterList(torch.ones(2) for _ in levels[:-1])
        self.bottom_up_weights = nn.ParameterList(
            torch.ones(3 if i < levels[-1] else 2) for i in levels[1:]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refines maps.

        Args:
            inputs (Sequence[Tensor]): Maps ``(N, C_i, H_i, W_i)``, after a ReLU.

        Returns:
            tuple[Tensor, ...]: As many maps, of the same sizes.

        Raises:
            ValueError: If the number of maps or of their channels differs from ``in_channels``.
        """
        check_maps(inputs, self.in_channels, 'BiFPNSelfTeacher')
        last = len(inputs) - 1
        lateral = [conv(x) for conv, x in zip(self.lateral, inputs)]
        down = [lateral[last]]
        for i in range(last - 1, -1, -1):
            above = F.interpolate(down[0].relu(), size=inputs[i].shape[2:])
            maps = lateral[i].relu(), self.from_above[i](above)
            down.insert(0, self.top_down[i](fused(self.top_down_weights[i], maps)))
        up = [down[0]]
        for i in range(1, last + 1):
            maps = [self.lateral2[i - 1](inputs[i]).relu()]
            maps += [down[i].relu()] if i < last else []
            maps += [self.from_below[i - 1](pool_down(up[-1].relu(), inputs[i].shape[2:]))]
            up.append(self.bottom_up[i - 1](fused(self.bottom_up_weights[i - 1], maps)))
        return tuple(x.relu() for x in up)


# Segmentation form --------------------------------------------------------------------------------


def node(channels: int) -> nn.Sequential:
    """The layers after each sum of maps: a scale and a shift for each channel, BN and ReLU.

    Args:
        channels (int): Channels of the maps.
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class BiFPNLayer(nn.Module):
    """A top-down and a bottom-up path over levels of one width; sums have no weights.

    ``U_n = node(P_n)``, ``U_i = node(P_i + bilinear(U_{i+1}))``, then ``O_1 = U_1``,
    ``O_i = node(P_i + U_i + nearest(O_{i-1}))``. Each node has its own parameters.

    Args:
        channels (int): Channels of all levels.
        num_levels (int): Number of levels, from high to low resolution.
        bottom_up (bool): Whether the bottom-up path exists; without it the outputs are the ``U_i``.
            Defaults to True.

    Shape:
        - inputs: ``num_levels`` maps ``(N, channels, H_i, W_i)``.
        - outputs: maps of the same shapes.
    """

    def __init__(self, channels: int, num_levels: int, bottom_up: bool = True) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(node(channels) for _ in range(num_levels))
        self.bottom_up = nn.ModuleList(
            node(channels) for _ in range(num_levels - 1 if bottom_up else 0)
        )

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the paths.

        Args:
            inputs (Sequence[Tensor]): ``num_levels`` maps ``(N, channels, H_i, W_i)``.

        Returns:
            list[Tensor]: The maps of the last path, of the same shapes.
        """
        down = [self.top_down[-1](inputs[-1])]
        for x, convert in zip(inputs[-2::-1], self.top_down[-2::-1]):
            down.insert(0, convert(x + resized(down[0], x, 'bilinear')))
        if not self.bottom_up:
            return down
        up = [down[0]]
        for x, between, convert in zip(inputs[1:], down[1:], self.bottom_up):
            up.append(convert(x + between + resized(up[-1], x, 'nearest')))
        return up


def resized(x: Tensor, like: Tensor, mode: str) -> Tensor:
    """Resizes a map to the size of another.

    Args:
        x (Tensor): ``(N, C, h, w)``.
        like (Tensor): ``(N, any, H, W)``.
        mode (str): ``'bilinear'`` or ``'nearest'``.

    Returns:
        Tensor: ``(N, C, H, W)``.
    """
    if x.shape[2:] == like.shape[2:]:
        return x
    corners = dict(align_corners=False) if mode == 'bilinear' else {}
    return F.interpolate(x, size=like.shape[2:], mode=mode, **corners)


@MODELS.register_module()
class BiFPNSegSelfTeacher(nn.Module):
    """Auxiliary pyramid that refines the levels of a segmentor's BiFPN neck (FRSKD).

    Its layers are those of :class:`BiFPN`, but the last layer ends after its top-down path.

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021
    (the network of its experiments on segmentation).

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        channels (int): Channels of all levels.
        num_layers (int): Number of layers. Defaults to 2.
        num_levels (int): Number of levels, from high to low resolution. Defaults to 6.

    Shape:
        - inputs: ``num_levels`` maps ``(N, channels, H_i, W_i)``.
        - outputs: maps of the same shapes.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument cannot be used or, in ``forward``, the maps do not fit.

    Examples:
        >>> import torch
        >>> neck = BiFPNSegSelfTeacher(64, num_levels=3)
        >>> maps = [torch.rand(2, 64, size, size) for size in (32, 16, 8)]
        >>> [tuple(x.shape) for x in neck(maps)]
        [(2, 64, 32, 32), (2, 64, 16, 16), (2, 64, 8, 8)]
    """

    def __init__(self, channels: int, num_layers: int = 2, num_levels: int = 6) -> None:
        super().__init__()
        check_counts(channels, num_layers, num_levels)
        self.channels = channels
        self.in_channels = [channels] * num_levels
        self.out_channels = [channels] * num_levels
        self.layers = nn.ModuleList(
            BiFPNLayer(channels, num_levels, bottom_up=number < num_layers - 1)
            for number in range(num_layers)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refines maps.

        Args:
            inputs (Sequence[Tensor]): ``num_levels`` maps ``(N, channels, H_i, W_i)``.

        Returns:
            tuple[Tensor, ...]: Maps of the same shapes.

        Raises:
            ValueError: If the number of maps or of their channels differs.
        """
        check_maps(inputs, self.in_channels, 'BiFPNSegSelfTeacher')
        for layer in self.layers:
            inputs = layer(inputs)
        return tuple(inputs)


@MODELS.register_module()
class BiFPN(nn.Module):
    """The student's neck of FRSKD's segmentation form: a bidirectional feature pyramid.

    As in the authors' code, a 1×1 convolution, BN and ReLU bring the maps of the backbone to one
    width. Then each map, from the last one on, is resized and added to the next higher one. A 3×3
    convolution of stride 2, BN and ReLU make each further level: the first from the backbone's last
    map, the next from the level before. The layers follow. (The BNs have torch's ``eps`` and
    ``momentum``; in the authors' laterals they are 1e-4 and 0.997.)

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021
    (the network of its experiments on segmentation).

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        in_channels (Sequence[int]): Channels of the backbone's maps, from high to low resolution.
        channels (int): Channels of all levels; the paper's models have 64, 88 and 112.
        num_layers (int): Number of layers. Defaults to 3.
        num_levels (int): Number of levels, at least the number of inputs. Defaults to 6.

    Shape:
        - inputs: maps ``(N, C_i, H_i, W_i)`` of the backbone.
        - outputs: ``num_levels`` maps ``(N, channels, H_i, W_i)``; each further level has half the
          size, rounded up.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument cannot be used or, in ``forward``, the maps do not fit.

    Examples:
        >>> import torch
        >>> neck = BiFPN([16, 32], channels=64, num_levels=4)
        >>> maps = [torch.rand(2, 16, 32, 32), torch.rand(2, 32, 16, 16)]
        >>> [tuple(x.shape) for x in neck(maps)]
        [(2, 64, 32, 32), (2, 64, 16, 16), (2, 64, 8, 8), (2, 64, 4, 4)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_layers: int = 3,
        num_levels: int = 6,
    ) -> None:
        super().__init__()
        self.in_channels = channel_counts(in_channels)
        check_counts(channels, num_layers, num_levels)
        inputs = len(self.in_channels)
        if not 1 <= inputs <= num_levels:
            raise ValueError(
                f'in_channels must name 1 to num_levels={num_levels} maps, got {self.in_channels}'
            )
        self.channels = channels
        self.out_channels = [channels] * num_levels
        self.lateral = nn.ModuleList(conv_block(c, channels) for c in self.in_channels)
        sources = [self.in_channels[-1], *[channels] * num_levels]
        self.further = nn.ModuleList(
            conv_block(c, channels, 3, stride=2) for c in sources[: num_levels - inputs]
        )
        self.layers = nn.ModuleList(BiFPNLayer(channels, num_levels) for _ in range(num_layers))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Builds the levels of the pyramid.

        Args:
            inputs (Sequence[Tensor]): Maps ``(N, C_i, H_i, W_i)`` of the backbone.

        Returns:
            tuple[Tensor, ...]: ``num_levels`` maps ``(N, channels, H_i, W_i)``.

        Raises:
            ValueError: If the number of maps or of their channels differs from ``in_channels``.
        """
        check_maps(inputs, self.in_channels, 'BiFPN')
        maps = [convert(x) for convert, x in zip(self.lateral, inputs)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + resized(maps[i + 1], maps[i], 'bilinear')
        x = inputs[-1]
        for convert in self.further:
            x = convert(x)
            maps.append(x)
        for layer in self.layers:
            maps = layer(maps)
        return tuple(maps)


# Checks -------------------------------------------------------------------------------------------


def count(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    """Returns ``value`` if it is a whole number from ``least`` on.

    Args:
        name (str): Name of the argument in an error.
        value (int): The argument.
        least (int): The least accepted number. Defaults to 1.
        most (int, optional): The largest one. Defaults to None: any.

    Raises:
        TypeError: If ``value`` is not a whole number.
        ValueError: If it is less than ``least``, or more than ``most``.
    """
    if type(value) is not int:
        raise TypeError(f'{name} must be a whole number, got {value!r}')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')
    if most is not None and value > most:
        raise ValueError(f'{name} must be at most {most}, got {value}')
    return value


def channel_counts(in_channels: Sequence[int]) -> list[int]:
    """Returns ``in_channels`` as a list if it is a sequence of numbers of channels.

    Raises:
        TypeError: If it is not a list or tuple of whole numbers.
        ValueError: If a number is below 1.
    """
    if not isinstance(in_channels, (list, tuple)):
        raise TypeError(f'in_channels must be a list, one number for each map, got {in_channels!r}')
    return [count('each of in_channels', channels) for channels in in_channels]


def check_counts(channels: int, num_layers: int, num_levels: int) -> None:
    """Refuses a pyramid without channels or layers, or with one level.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument is too small.
    """
    count('channels', channels)
    count('num_layers', num_layers, most=MOST_LAYERS)
    count('num_levels', num_levels, least=2, most=MOST_LAYERS)


def check_maps(maps: Sequence[Tensor], channels: Sequence[int], name: str) -> None:
    """Refuses maps for which a neck was not built.

    Args:
        maps (Sequence[Tensor]): The inputs of the neck.
        channels (Sequence[int]): The expected number of channels of each map.
        name (str): Name of the neck in an error.

    Raises:
        ValueError: If the maps or the numbers of maps or channels differ.
    """
    wanted = f'{name} was built for {len(channels)} maps with {list(channels)} channels'
    if not isinstance(maps, (list, tuple)):
        raise ValueError(f'{wanted}, got a {type(maps).__name__}; give a list or tuple of maps')
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in maps]
    if any(not isinstance(shape, tuple) or len(shape) != 4 for shape in shapes):
        raise ValueError(f'{wanted}, (N, C, H, W) each, got {shapes}')
    got = [shape[1] for shape in shapes]
    if got != list(channels):
        raise ValueError(f'{wanted}, got {len(got)} with {got}')
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f'{wanted} of one batch, got shapes {shapes}')
