"""Encoder: what a library's backbone has to be for a FoundationModel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.words import first_line

#: Mean and standard deviation of ImageNet's images, RGB, of pixel values from 0 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoded(NamedTuple):
    """What a backbone makes of images.

    Args:
        maps (list[Tensor]): The map of each chosen block, ``(N, C, H, W)``.
        last (Tensor): The map of the last block, ``(N, C, H, W)``.
        summary (Tensor, optional): One vector for each image, ``(N, C)``: the class token, or what
            the backbone pools. Defaults to None: it has neither.
    """

    maps: list[Tensor]
    last: Tensor
    summary: Tensor | None = None


class Encoder(nn.Module):
    """Base of the backbones of all libraries.

    Attributes:
        divisor (int): Height and width of an image have to be multiples of it, pixels. It is the
            patch of a transformer, and the stride of the last map of other backbones.
        side (int, optional): The only height and width that it takes, pixels. None: any.
        rgb (bool): Whether its images are RGB. Defaults to True; they are BGR otherwise.
        mean (Sequence[float]): Mean of the images that it learnt on, of values from 0 to 255.
        std (Sequence[float]): Their standard deviation.
    """

    divisor: int
    side: int | None = None
    rgb: bool = True
    mean: Sequence[float]
    std: Sequence[float]

    @abstractmethod
    def forward(self, images: Tensor) -> Encoded:
        """Encodes images.

        Args:
            images (Tensor): ``(N, 3, H, W)``, normalised.
        """

    def normalised_by(self, mean: Sequence[float], std: Sequence[float], scale: float) -> None:
        """Notes mean and standard deviation, of values from 0 to ``255 · scale``."""
        self.mean, self.std = [m / scale for m in mean], [s / scale for s in std]


def chosen_blocks(blocks: Sequence[int], count: int, name: str) -> list[int]:
    """Counts blocks from 0.

    Args:
        blocks (Sequence[int]): Numbers of blocks; those below 0 count from the end.
        count (int): The blocks that there are.
        name (str): Name of the model in the error.

    Raises:
        ValueError: If there is no such block.

    Examples:
        >>> chosen_blocks([3, -1], 12, 'it')
        [3, 11]
    """
    wrong = [number for number in blocks if not -count <= number < count]
    if wrong:
        raise ValueError(
            f'blocks: {name} has {count} blocks, from 0 to {count - 1} or from -{count} to -1; '
            f'there is no block {wrong[0]}'
        )
    return [number % count for number in blocks]


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lays the tokens of an image, ``(N, H · W, C)``, out as a map ``(N, C, H, W)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


@torch.no_grad()
def trial(encoder: Encoder, rows: int = 2, columns: int = 3) -> Encoded:
    """Runs a backbone on an empty image of some patches."""
    size = rows * encoder.divisor, columns * encoder.divisor
    return encoder(torch.zeros(1, 3, *size))


def find_side(encoder: Encoder, side: Any, name: str) -> None:
    """Finds out whether a backbone takes images of any size, else notes the only one.

    Args:
        encoder (Encoder): The backbone.
        side (int | None): Height and width of the images that it learnt on, if known.
        name (str): Name of the model in the error.

    Raises:
        ValueError: If it takes neither.
    """
    try:
        trial(encoder)
    except Exception as error:  # whatever a model says of a size that it does not take
        if not isinstance(side, int) or side % encoder.divisor:
            raise ValueError(f'{name} cannot be tried: {first_line(error)}') from error
        encoder.side = side
