"""CutMix and Mixup, which mix the images of a batch, and a preprocessor of mmseg with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import finite_number, positive_number
from mmkd_plugin.registry import MODELS

#: Top, bottom, left and right of a box; bottom and right lie one position beyond it.
Box = tuple[int, int, int, int]

#: Pixel maps of a data sample, by their field and, in a ``PixelData``, their name.
Maps = dict[tuple[str, str], Any]

ONLY_SOFT = (
    'Mixup needs soft targets (N, classes); the label maps of a segmentation have one class for '
    "each pixel and cannot be mixed. Take dict(type='mmkd_plugin.CutMix')"
)


# The mathematics ----------------------------------------------------------------------------------


def mixing_ratio(alpha: float, generator: torch.Generator | None = None) -> float:
    """Draws λ from Beta(α, α).

    With U and V uniform, ``T = sqrt(U^(-1/α) - 1) cos(2πV)`` has the distribution of Student's t
    with 2α degrees of freedom, up to a factor, and ``(1 + T / sqrt(1 + T²)) / 2`` has that of λ.
    (torch's own sampler of the beta distribution does not take a generator.)

    Args:
        alpha (float): α, above 0: 1 is uniform, less favours 0 and 1, more favours 1/2.
        generator (torch.Generator, optional): Source of the draw. Defaults to None: the global
            generator.

    Returns:
        float: λ in [0, 1].

    Raises:
        TypeError: If ``alpha`` is not a number.
        ValueError: If it is not finite and above 0.
    """
    alpha = positive_number('alpha', alpha)
    u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    log = min(-math.log1p(-u) / alpha, 600.0)  # 1 - u is never 0; beyond 600 λ is 0 or 1 anyway
    t = math.sqrt(math.expm1(log)) * math.cos(2 * math.pi * v)
    return (1 + t / math.hypot(1, t)) / 2


def other_images(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws a partner for each image of a batch: a permutation that leaves no image in place.

    All other images are equally likely. (Half of all permutations of two images would mix nothing.)

    Args:
        count (int): Images in the batch.
        generator (torch.Generator, optional): Source of the draw. Defaults to None: the global
            generator.

    Returns:
        Tensor: The number of the partner of each image, ``(count,)``.
    """
    circle = torch.randperm(count, generator=generator)
    partners = torch.empty_like(circle)
    partners[circle] = circle.roll(1)
    return partners


def cutmix_box(
    height: int, width: int, lam: float, generator: torch.Generator | None = None
) -> Box:
    """Draws the box of CutMix: sides of ``sqrt(1 - λ)`` of the image, its centre anywhere.

    The image border cuts the box off, so it may cover less than ``1 - λ`` of the image.

    Args:
        height (int): Rows of the image.
        width (int): Columns of the image.
        lam (float): λ in [0, 1].
        generator (torch.Generator, optional): Source of the draw. Defaults to None: the global
            generator.

    Returns:
        tuple[int, int, int, int]: Top, bottom, left and right.

    Raises:
        TypeError: If λ is not a number.
        ValueError: If λ is not in [0, 1], or the image is empty.
    """
    if height < 1 or width < 1:
        raise ValueError(f'the image has no pixels: height {height}, width {width}')
    ratio = math.sqrt(1 - _fraction('lam', lam))
    box: list[int] = []
    for side in (height, width):
        centre = int(torch.randint(side, (), generator=generator))
        half = int(side * ratio) // 2
        box += [max(centre - half, 0), min(centre + half, side)]
    return tuple(box)


def paste(images: Tensor, partners: Tensor, box: Box) -> Tensor:
    """Copies a box of its partner into each image.

    Args:
        images (Tensor): ``(N, C, H, W)``.
        partners (Tensor): Numbers of the partners, ``(N,)``.
        box (tuple[int, int, int, int]): Top, bottom, left and right.

    Returns:
        Tensor: ``(N, C, H, W)``, a new tensor.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
    return mixed


def mix(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Blends images: λ times each image plus 1 - λ times its partner.

    Args:
        images (Tensor): ``(N, ...)``, floating point.
        partners (Tensor): Numbers of the partners, ``(N,)``.
        lam (float): λ in [0, 1].

    Returns:
        Tensor: ``(N, ...)``.

    Raises:
        ValueError: If the images are integers.
    """
    if not images.is_floating_point():
        raise ValueError(f'only floating point can be blended, got {images.dtype}')
    return torch.lerp(images[partners], images, lam)


def mix_targets(targets: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Blends soft targets: λ times each target plus 1 - λ times that of its partner.

    Args:
        targets (Tensor): ``(N, classes)``, one-hot or soft, floating point.
        partners (Tensor): Numbers of the partners, ``(N,)``.
        lam (float): λ in [0, 1].

    Returns:
        Tensor: ``(N, classes)``.

    Raises:
        ValueError: If the targets have another shape, or are integers.
    """
    _check_soft(targets)
    return mix(targets, partners, lam)


# The parts of a config ----------------------------------------------------------------------------


@MODELS.register_module()
class CutMix:
    """Pastes a box of another image of the batch into each image, with its labels.

    A batch has one λ ~ Beta(α, α) and one box with the area 1 - λ, less where the image border cuts
    it off. Each image has another image as its partner. The inputs are not changed in place.

    In segmentation, all maps of a data sample that have the size of the images are pasted too:
    labels with their ignored pixels, edges, depths. The box lies in the common part of the images
    without their padding, so the padding stays where the data samples say it is. In classification,
    the soft targets are mixed by the areas.

    CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV
    2019.

    - paper: https://arxiv.org/abs/1905.04899
    - code: https://github.com/clovaai/CutMix-PyTorch

    Args:
        prob (float): Probability that a batch is mixed, from 0 to 1. Defaults to 0.5.
        alpha (float): α, above 0. Defaults to 1.0: λ is uniform.

    Shape:
        - inputs: ``(N, C, H, W)``; a batch of one image stays as it is.
        - targets: N data samples with pixel maps ``(..., H, W)``, or ``(N, classes)``.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range or, in a call, the targets cannot be mixed.

    Examples:
        >>> data_preprocessor = dict(
        ...     type='mmkd_plugin.SegDataPreProcessor',
        ...     batch_augments=[dict(type='mmkd_plugin.CutMix', prob=0.5)])

        >>> images, targets = torch.rand(4, 3, 32, 32), torch.eye(4)
        >>> images, targets = CutMix(prob=1.0)(images, targets)
        >>> torch.allclose(targets.sum(1), torch.ones(4))
        True
    """

    def __init__(self, prob: float = 0.5, alpha: float = 1.0) -> None:
        self.prob = _fraction('prob', prob)
        self.alpha = positive_number('alpha', alpha)

    def __call__(
        self, inputs: Tensor, targets: Sequence[BaseDataElement] | Tensor
    ) -> tuple[Tensor, Sequence[BaseDataElement] | Tensor]:
        """Mixes a batch, or returns it as it is.

        Args:
            inputs (Tensor): ``(N, C, H, W)``.
            targets (Sequence[BaseDataElement] | Tensor): Data samples, or ``(N, classes)``.

        Returns:
            tuple: The mixed inputs and targets.

        Raises:
            ValueError: If the targets cannot be mixed.
        """
        size = tuple(inputs.shape[-2:])
        _check_number('CutMix', inputs, targets)
        if isinstance(targets, Tensor):
            _check_soft(targets)
        else:
            maps = _maps_of(targets, size)
        if len(inputs) < 2 or float(torch.rand(())) >= self.prob:
            return inputs, targets
        partners, lam = other_images(len(inputs)), mixing_ratio(self.alpha)
        if isinstance(targets, Tensor):
            box = cutmix_box(*size, lam)
            kept = 1 - (box[1] - box[0]) * (box[3] - box[2]) / (size[0] * size[1])
            return paste(inputs, partners, box), mix_targets(targets, partners, kept)
        box = cutmix_box(*_common_size(size, targets), lam)
        others = [maps[i] for i in partners.tolist()]
        mixed = [_paste_sample(*three, box) for three in zip(targets, maps, others)]
        return paste(inputs, partners, box), mixed


@MODELS.register_module()
class Mixup:
    """Blends each image of a batch with another one, and their soft targets, for classification.

    A batch has one λ ~ Beta(α, α). Each image has another image as its partner. The inputs are not
    changed in place.

    mixup: Beyond Empirical Risk Minimization, ICLR 2018.

    - paper: https://arxiv.org/abs/1710.09412
    - code: https://github.com/facebookresearch/mixup-cifar10

    Args:
        alpha (float): α, above 0. Defaults to 0.2: λ is mostly close to 0 or 1.

    Shape:
        - inputs: ``(N, ...)``; a batch of one image stays as it is.
        - targets: ``(N, classes)``, one-hot or soft.

    Raises:
        TypeError: If ``alpha`` is not a number.
        ValueError: If ``alpha`` is not above 0 or, in a call, the targets cannot be mixed. Label
            maps of a segmentation never can.

    Examples:
        >>> images, targets = torch.rand(4, 3, 32, 32), torch.eye(4)
        >>> images, targets = Mixup(alpha=0.2)(images, targets)
        >>> torch.allclose(targets.sum(1), torch.ones(4))
        True
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = positive_number('alpha', alpha)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            inputs (Tensor): ``(N, ...)``.
            targets (Tensor): ``(N, classes)``.

        Returns:
            tuple: The mixed inputs and targets.

        Raises:
            ValueError: If the targets cannot be mixed.
        """
        if not isinstance(targets, Tensor):
            raise ValueError(ONLY_SOFT)
        _check_number('Mixup', inputs, targets)
        _check_soft(targets)
        if len(inputs) < 2:
            return inputs, targets
        partners, lam = other_images(len(inputs)), mixing_ratio(self.alpha)
        return mix(inputs, partners, lam), mix_targets(targets, partners, lam)


@MODELS.register_module()
def SegDataPreProcessor(
    batch_augments: Sequence[dict | Callable] | dict | Callable | None = None, **kwargs: Any
) -> Any:
    """Builds mmsegmentation's preprocessor, with batch augmentations from a config.

    The result is the stock class, which takes a callable but does not build one from a config.

    Args:
        batch_augments (list[dict], optional): Augmentations of each training batch, in this order:
            ``dict(type='mmkd_plugin.CutMix')``, or another registered callable that takes and
            returns ``(inputs, data_samples)``. Defaults to None.
        **kwargs (Any): Arguments of mmsegmentation's ``SegDataPreProcessor``.

    Returns:
        SegDataPreProcessor: mmsegmentation's preprocessor.

    Raises:
        ImportError: If mmsegmentation is not installed.
        ValueError: If an augmentation cannot mix label maps.

    Examples:
        >>> data_preprocessor = dict(
        ...     type='mmkd_plugin.SegDataPreProcessor',
        ...     mean=[123.675, 116.28, 103.53],
        ...     std=[58.395, 57.12, 57.375],
        ...     bgr_to_rgb=True,
        ...     size=(512, 1024),
        ...     batch_augments=[dict(type='mmkd_plugin.CutMix', prob=0.5)])
    """
    # Imported here: the registry loads this module for mmdetection too, without mmsegmentation.
    from mmseg.models.data_preprocessor import SegDataPreProcessor as Stock

    augments = batch_augments or ()
    if isinstance(augments, Mapping) or callable(augments):
        augments = [augments]
    return Stock(batch_augments=InOrder(augments) if augments else None, **kwargs)


class InOrder:
    """Applies several batch augmentations in their order.

    Args:
        augments (Sequence[dict | Callable]): Their configs, or callables.

    Raises:
        ValueError: If an augmentation cannot mix label maps.
    """

    def __init__(self, augments: Sequence[dict | Callable]) -> None:
        self.augments = [MODELS.build(a) if isinstance(a, Mapping) else a for a in augments]
        if any(isinstance(augment, Mixup) for augment in self.augments):
            raise ValueError(ONLY_SOFT)

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> tuple[Tensor, Sequence]:
        """Augments a batch.

        Args:
            inputs (Tensor): ``(N, C, H, W)``.
            data_samples (Sequence): N data samples.

        Returns:
            tuple: The augmented inputs and data samples.
        """
        for augment in self.augments:
            inputs, data_samples = augment(inputs, data_samples)
        return inputs, data_samples


def use_stock_preprocessor(config: Any) -> None:
    """Turns each ``mmkd_plugin.SegDataPreProcessor`` in a config into mmsegmentation's, in place.

    The two differ in training alone, and neither has weights.

    Args:
        config (Any): A config; nested dicts, lists and tuples are searched.
    """
    if isinstance(config, dict):
        kind = config.get('type')
        if not isinstance(kind, str):
            kind = f'{getattr(kind, "__module__", "")}.{getattr(kind, "__qualname__", "")}'
        if kind.startswith('mmkd_plugin.') and kind.endswith('.SegDataPreProcessor'):
            config['type'] = 'SegDataPreProcessor'
            config.pop('batch_augments', None)
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for value in config:
        use_stock_preprocessor(value)


# Checks and data samples --------------------------------------------------------------------------


def _fraction(name: str, value: float) -> float:
    """Returns ``value`` if it is a number in [0, 1].

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range, or NaN.
    """
    if not 0 <= finite_number(name, value) <= 1:
        raise ValueError(f'{name} must be from 0 to 1, got {value!r}')
    return value


def _check_number(name: str, inputs: Tensor, targets: Any) -> None:
    if targets is None or len(targets) != len(inputs):
        got = 'none' if targets is None else len(targets)
        raise ValueError(f'{name}: {len(inputs)} images need as many targets, got {got}')


def _check_soft(targets: Tensor) -> None:
    if targets.ndim != 2 or not targets.is_floating_point():
        raise ValueError(
            'expected soft targets (N, classes) of floating point, such as '
            f'torch.nn.functional.one_hot(labels, classes).float(); got {targets.dtype} of shape '
            f'{tuple(targets.shape)}'
        )


def _common_size(size: tuple[int, int], samples: Sequence[BaseDataElement]) -> tuple[int, int]:
    """Height and width of the part that no image pads; padding is at the right and the bottom."""
    shapes = [size, *(sample.metainfo.get('img_shape', size)[:2] for sample in samples)]
    return min(int(shape[0]) for shape in shapes), min(int(shape[1]) for shape in shapes)


def _maps_of(samples: Sequence[BaseDataElement], size: tuple[int, int]) -> list[Maps]:
    """The pixel maps of each data sample, checked."""
    maps = [_maps(sample, size) for sample in samples]
    if any(other.keys() != maps[0].keys() for other in maps):
        raise ValueError('CutMix: the data samples of a batch must hold the same pixel maps')
    if maps and not maps[0]:
        raise ValueError('CutMix: the data samples hold no pixel maps, such as `gt_sem_seg`')
    return maps


def _maps(sample: BaseDataElement, size: tuple[int, int]) -> Maps:
    found: Maps = {}
    for key, value in sample.items():
        if isinstance(value, InstanceData):
            raise ValueError(f'CutMix mixes pixel maps; it cannot mix the objects in `{key}`')
        if isinstance(value, PixelData):
            for name, pixels in value.items():
                if tuple(pixels.shape[-2:]) != size:
                    raise ValueError(
                        f'CutMix: `{key}` of a data sample has the size '
                        f'{tuple(pixels.shape[-2:])}, the images have {size}'
                    )
                found[key, name] = pixels
        elif isinstance(value, (Tensor, np.ndarray)) and tuple(value.shape[-2:]) == size:
            found[key, ''] = value
    return found


def _paste_sample(sample: BaseDataElement, own: Maps, other: Maps, box: Box) -> BaseDataElement:
    """A copy of a data sample with a box of another one in its pixel maps."""
    top, bottom, left, right = box
    mixed = sample.clone()  # shares its content with the sample
    for key in {key for key, name in own if name}:
        setattr(mixed, key, sample.get(key).clone())
    for (key, name), pixels in own.items():
        pasted = pixels.clone() if isinstance(pixels, Tensor) else pixels.copy()
        pasted[..., top:bottom, left:right] = other[key, name][..., top:bottom, left:right]
        if name:
            setattr(mixed.get(key), name, pasted)
        else:
            setattr(mixed, key, pasted)
    return mixed
