"""Preprocessing: gives a teacher the student's images normalised and padded as its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.taps import Maps


@dataclass(frozen=True)
class Normalization:
    """How a data preprocessor turns pixel values into the input of a network.

    Args:
        mean (tuple[float, ...]): Mean of each channel, in the order after ``flip``.
        std (tuple[float, ...]): Standard deviation of each channel, in the order after ``flip``.
        flip (bool): Whether the channels are reversed first, BGR to RGB or back.
        pad_value (float): Value of padding in the normalised image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    pad_value: float

    @classmethod
    def of(cls, preprocessor: nn.Module) -> Normalization:
        """Reads a preprocessor of mmengine, mmseg or mmdet; any other one is the identity."""
        mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
        mean = (0.0,) if mean is None else tuple(mean.double().flatten().tolist())
        flip = bool(_first(preprocessor, '_channel_conversion', 'channel_conversion'))
        return cls(
            mean=mean,
            std=(1.0,) if std is None else tuple(std.double().flatten().tolist()),
            flip=flip and len(mean) in (1, 3),  # only images of three channels are flipped
            pad_value=float(_first(preprocessor, 'pad_value', 'pad_val') or 0),
        )


def _first(preprocessor: nn.Module, *names: str) -> Any:
    """Returns the first attribute that exists: names differ between mmengine and mmseg."""
    return next(
        (getattr(preprocessor, name) for name in names if hasattr(preprocessor, name)), None
    )


class InputConverter:
    """Undoes the student's normalisation and applies the teacher's, in one pass.

    Args:
        source (Normalization): Normalisation of the student.
        target (Normalization): Normalisation of the teacher.
    """

    def __init__(self, source: Normalization, target: Normalization) -> None:
        self.target = target
        self.identity = source == target
        self.flip = source.flip != target.flip
        mean_s, std_s = (torch.tensor(v, dtype=torch.float64) for v in (source.mean, source.std))
        mean_t, std_t = (torch.tensor(v, dtype=torch.float64) for v in (target.mean, target.std))
        if self.flip:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.scale = (std_s / std_t).view(-1, 1, 1)
        self.shift = ((mean_s - mean_t) / std_t).view(-1, 1, 1)

    @classmethod
    def between(cls, student: nn.Module, teacher: nn.Module) -> InputConverter:
        """Returns the converter between two data preprocessors."""
        return cls(Normalization.of(student), Normalization.of(teacher))

    def __call__(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        """Converts a batch.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``, normalised for the student.
            data_samples (list, optional): Data samples with ``img_shape``. Positions beyond it are
                padding and get the teacher's padding value. Defaults to None.

        Returns:
            Tensor: ``(N, C, H, W)`` as the teacher's own preprocessor would return it. It is
            ``inputs`` if the two normalisations are equal.
        """
        if self.identity:
            return inputs
        # always in float32: half precision has too few digits for the shift
        scale, shift = (
            v.to(inputs.device, torch.float32, non_blocking=True) for v in (self.scale, self.shift)
        )
        images = inputs.flip(1) if self.flip and inputs.shape[1] == 3 else inputs
        images = torch.addcmul(shift, images.float(), scale)
        for image, sample in zip(images, data_samples or ()):
            height, width = sample.metainfo.get('img_shape', image.shape[-2:])[:2]
            image[:, height:] = self.target.pad_value
            image[:, :, width:] = self.target.pad_value
        return images.to(inputs.dtype)


class Padding:
    """Pads batches on the right and at the bottom for a model, and cuts its maps back.

    Args:
        divisor (int): Height and width become multiples of it, pixels.
        value (float): Value of the padding in the normalised image.

    Examples:
        >>> padding = Padding(32, 0.0)
        >>> images, _ = padding(torch.rand(2, 3, 122, 150), None)
        >>> images.shape
        torch.Size([2, 3, 128, 160])
        >>> padding.cut(torch.rand(2, 8, 16, 20), (122, 150), (128, 160)).shape
        torch.Size([2, 8, 16, 19])
    """

    def __init__(self, divisor: int, value: float) -> None:
        self.divisor = divisor
        self.value = value

    @staticmethod
    def of(preprocessor: nn.Module) -> int:
        """Returns the divisor to which a data preprocessor pads, 1 if it does not."""
        tested = getattr(preprocessor, 'test_cfg', None)  # of mmseg
        tested = tested if isinstance(tested, Mapping) else {}
        given = (getattr(preprocessor, 'pad_size_divisor', None), tested.get('size_divisor'))
        return max((one for one in given if isinstance(one, int)), default=1)

    def missing(self, inputs: Tensor) -> tuple[int, int]:
        """Returns the rows and columns that a batch lacks."""
        height, width = inputs.shape[-2:]
        return -height % self.divisor, -width % self.divisor

    def __call__(self, inputs: Tensor, data_samples: list | None) -> tuple[Tensor, list | None]:
        """Pads a batch, and notes its size in copies of the data samples.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``, normalised for the model.
            data_samples (list, optional): Their data samples.

        Returns:
            tuple[Tensor, list | None]: The batch; as it is if it needs no padding.
        """
        rows, columns = self.missing(inputs)
        if not rows and not columns:
            return inputs, data_samples
        inputs = F.pad(inputs, (0, columns, 0, rows), value=self.value)
        size = tuple(inputs.shape[-2:])
        samples = [sample.clone() for sample in data_samples or ()]
        for sample in samples:
            sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
        return inputs, None if data_samples is None else samples

    def cut(self, maps: Maps, size: tuple[int, int], padded: tuple[int, int]) -> Maps:
        """Cuts what lies in the padding off maps.

        Args:
            maps (Tensor | list[Tensor]): Maps of the padded batch. Those without height and width,
                with fewer dimensions than ``(N, C, H, W)``, stay as they are.
            size (tuple[int, int]): Height and width of the batch without the padding, pixels.
            padded (tuple[int, int]): The same with it.
        """
        if not isinstance(maps, Tensor):
            return [self.cut(x, size, padded) for x in maps]
        if maps.ndim < 4:
            return maps
        # as many positions as the stride gives for the batch alone
        height, width = (-(-a * x // b) for a, b, x in zip(size, padded, maps.shape[-2:]))
        return maps[..., :height, :width].contiguous()
