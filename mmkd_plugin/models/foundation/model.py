"""FoundationModel: a backbone of another library, as the model of a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd_plugin.models.foundation.encoder import Encoder
from mmkd_plugin.registry import MODELS
from mmkd_plugin.words import did_you_mean, short

#: The libraries; each has a module here with a function ``load``.
SOURCES = {
    'transformers': 'from_transformers',
    'timm': 'from_timm',
    'mmpretrain': 'from_mmpretrain',
    'efficientnet_lite': 'from_efficientnet_lite',
}


@MODELS.register_module()
class FoundationModel(BaseModel):
    """A frozen backbone of a foundation model, whose maps an online teacher shows.

    It brings its own weights, its own normalisation and its own size of images. It has three taps:

    - ``maps``: a map ``(N, C, H, W)`` of each chosen block. The class token and register tokens
      are left out.
    - ``tokens``: the last block's tokens of the image, ``(N, L, C)``.
    - ``summary``: a vector ``(N, C)`` for each image: the class token, or what the backbone pools,
      or else the mean over the image without padding.

    An image is padded at the right and at the bottom to whole positions of the map and then resized
    so that a position covers one patch. So position ``(i, j)`` shows the pixels from ``stride · i``
    and ``stride · j`` on, as in a convolutional network.

    Args:
        source (str): The library: ``'transformers'``, ``'timm'``, ``'mmpretrain'`` or
            ``'efficientnet_lite'``.
        path (str): Folder or file of the weights on this machine. Nothing is downloaded, and no
            code in it runs.
        blocks (Sequence[int]): The blocks whose maps ``maps`` gives, from 0; those below 0 count
            from the end. Defaults to ``(-1,)``: the last one.
        stride (int, optional): Pixels of the batch that one position of the map covers, at the
            coarsest map if they differ. A smaller one shows the model a larger image. Defaults to
            None: the patch, or the next power of two (16 for a patch of 14), so it fits the maps of
            students. If the model takes images of one size alone, the smallest that fits there.
        config (str | dict, optional): The model, where the files at ``path`` do not say it: the
            config of a model of mmpretrain, or the name of one of timm. Defaults to None.
        data_preprocessor (dict, optional): A data preprocessor of mmengine, which says the
            normalisation. Defaults to None: the one that lies with the weights.

    Raises:
        ValueError: If an argument, or a file of the model, cannot be used.
        FileNotFoundError: If there is no such file. The message has the command that gets it.

    Attributes:
        weights_from (str): The ``path``.
        predicts (bool): False: it has no task.

    Examples:
        >>> from mmkd_plugin import FoundationModel
        >>> FoundationModel(source='transformers', path='dinov3-vitb16/')
        Traceback (most recent call last):
        FileNotFoundError: path: no foundation model at dinov3-vitb16/; ...
    """

    predicts = False

    def __init__(
        self,
        source: str,
        path: str,
        blocks: Sequence[int] = (-1,),
        stride: int | None = None,
        config: str | dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        encoder = _loader(source)(path, _numbers(blocks), config)
        if data_preprocessor is None:
            data_preprocessor = dict(
                type='mmengine.ImgDataPreprocessor',
                mean=list(encoder.mean),
                std=list(encoder.std),
                bgr_to_rgb=encoder.rgb,
            )
        super().__init__(data_preprocessor)
        self.weights_from = path
        self.encoder = encoder
        self.stride = self._checked_stride(stride)
        self.maps, self.tokens, self.summary = nn.Identity(), nn.Identity(), nn.Identity()
        self.requires_grad_(False)

    def _checked_stride(self, stride: int | None) -> int | None:
        if stride is None:
            divisor = self.encoder.divisor
            return None if self.encoder.side else 2 ** math.ceil(math.log2(divisor))
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f'stride must be a whole number of pixels, got {short(stride)}')
        return stride

    def init_weights(self) -> None:
        """Keeps the weights: they come from the file."""

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> list[Tensor]:
        """Encodes a batch.

        Args:
            inputs (Tensor): Images ``(N, 3, H, W)``, normalised by its data preprocessor.
            data_samples (list, optional): Data samples with ``img_shape``; what lies beyond it is
                padding. Defaults to None: there is none.
            mode (str): ``'tensor'``; it has no task of its own. Defaults to ``'tensor'``.

        Returns:
            list[Tensor]: The maps of the chosen blocks, ``(N, C, H, W)``.

        Raises:
            ValueError: If ``mode`` is another one, or the images are too large at this stride.
        """
        if mode != 'tensor':
            raise ValueError(f'a foundation model has no task loss and predicts nothing: {mode!r}')
        size = inputs.shape[-2:]
        stride = self._stride_for(size)
        images, covered = self.fitted(inputs, stride)
        encoded = self.encoder(images)
        maps = self.maps([_cut(x, size, covered) for x in encoded.maps])
        last = _cut(encoded.last, size, covered)
        self.tokens(last.flatten(2).transpose(1, 2))
        summary = encoded.summary
        self.summary(_mean(last, data_samples, size) if summary is None else summary)
        return maps

    def _stride_for(self, size: Sequence[int]) -> int:
        """The stride for a batch: at the only size of some models the smallest that fits."""
        if self.encoder.side is None:
            return self.stride
        needed = math.ceil(max(size) * self.encoder.divisor / self.encoder.side)
        if self.stride is not None and self.stride < needed:
            raise ValueError(
                f'stride={self.stride}: the model takes images of {self.encoder.side} pixels '
                f'alone, where one of {size[0]}×{size[1]} fits at a stride from {needed} on'
            )
        return self.stride or needed

    def fitted(self, inputs: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
        """Pads and resizes images for the backbone.

        Args:
            inputs (Tensor): Images ``(N, 3, H, W)``, normalised.
            stride (int): Pixels of them for one position of the map.

        Returns:
            tuple[Tensor, tuple[int, int]]: The images, and how many pixels of ``inputs`` and of
            padding behind them they show along each axis.
        """
        patch, side = self.encoder.divisor, self.encoder.side
        grid = [-(-length // stride) for length in inputs.shape[-2:]]
        images = _padded(inputs, [count * stride for count in grid])
        if stride != patch:
            images = F.interpolate(
                images,
                [count * patch for count in grid],
                mode='bicubic',
                align_corners=False,
                antialias=True,
            )
        if side is not None:
            images, grid = _padded(images, (side, side)), [side // patch] * 2
        return images, (grid[0] * stride, grid[1] * stride)


def _numbers(blocks: Sequence[int]) -> list[int]:
    numbers = list(blocks) if isinstance(blocks, (list, tuple)) else []
    if not numbers or any(isinstance(x, bool) or not isinstance(x, int) for x in numbers):
        raise ValueError(f'blocks must be a list of block numbers, as [-1], got {short(blocks)}')
    return numbers


def _loader(source: str) -> Callable[[str, list[int], Any], Encoder]:
    if not isinstance(source, str) or source not in SOURCES:
        hint = did_you_mean(str(source), SOURCES, "'{}'", cutoff=0.5)
        raise ValueError(
            f'source must be one of {", ".join(map(repr, SOURCES))}, got {short(source)}{hint}'
        )
    return import_module(f'mmkd_plugin.models.foundation.{SOURCES[source]}').load


def _padded(images: Tensor, size: Sequence[int]) -> Tensor:
    """Pads images at the right and at the bottom with 0, the mean of normalised images."""
    rows, columns = (to - length for to, length in zip(size, images.shape[-2:], strict=True))
    return F.pad(images, (0, columns, 0, rows)) if rows or columns else images


def _cut(maps: Tensor, size: Sequence[int], covered: Sequence[int]) -> Tensor:
    """Cuts maps to the positions that begin inside the batch."""
    height, width = (-(-a * x // b) for a, b, x in zip(size, covered, maps.shape[-2:], strict=True))
    return maps[..., :height, :width].contiguous()


def _mean(maps: Tensor, data_samples: list | None, size: Sequence[int]) -> Tensor:
    """The mean of each map over the image, without its padding."""
    if not data_samples:
        return maps.mean((2, 3))
    means = []
    for one, sample in zip(maps, data_samples, strict=True):
        shape = sample.metainfo.get('img_shape', size)[:2]
        height, width = (
            max(-(-a * x // b), 1) for a, b, x in zip(shape, size, one.shape[1:], strict=True)
        )
        means.append(one[:, :height, :width].mean((1, 2)))
    return torch.stack(means)
