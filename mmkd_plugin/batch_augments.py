"""Images of a batch mixed with each other: CutMix and Mixup, and how a config asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import finite_number, positive_number
from mmkd_plugin.registry import MODELS

#: Top, bottom, left and right of a box; bottom and right are the first position beyond it.
Box = tuple[int, int, int, int]

#: Pixel maps of a data sample, by field and, of a ``PixelData``, the name in it.
Maps = dict[tuple[str, str], Any]

ONLY_SOFT = (
    'Mixup needs soft targets (N, classes); the label maps of a segmentation have one class for '
    "each pixel and cannot be mixed. Take dict(type='mmkd_plugin.CutMix')"
)


# The mathematics ----------------------------------------------------------------------------------


def mixing_ratio(alpha: float, generator: torch.Generator | None = None) -> float:
    """Draws λ from Beta(α, α).

    With U and V uniform, ``T = sqrt(U^(-1/α) - 1) cos(2πV)`` has the distribution of Student's t
    with 2α degrees of freedom, up to a factor, and ``(1 + T / sqrt(1 + T²)) / 2`` that of λ.
    (torch's own sampler of this distribution takes no generator.)

    Args:
        alpha (float): α above 0: 1 is uniform, less favours 0 and 1, more favours 1/2.
        generator (torch.Generator, optional): Defaults to None, the global one.

    Returns:
        float: In [0, 1].

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
    """Draws a partner for each image of a batch: a random permutation that leaves none in place.

    Each of the other images is as likely as the next. (Among all permutations, half of those of
    two images would mix nothing.)

    Args:
        count (int): Images in the batch.
        generator (torch.Generator, optional): Defaults to None, the global one.

    Returns:
        Tensor: ``(count,)``, the number of the partner of each image.
    """
    circle = torch.randperm(count, generator=generator)
    partners = torch.empty_like(circle)
    partners[circle] = circle.roll(1)
    return partners


def cutmix_box(
    height: int, width: int, lam: float, generator: torch.Generator | None = None
) -> Box:
    """Draws the box of CutMix: sides of ``sqrt(1 - λ)`` of the image, its centre anywhere.

    What lies outside the image is cut off, so the box may cover less than ``1 - λ`` of it.

    Paper: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, ICCV 2019, arXiv 1905.04899. Code: ``clovaai/CutMix-PyTorch``.

    Args:
        height (int): Rows of the image.
        width (int): Columns of the image.
        lam (float): λ in [0, 1].
        generator (torch.Generator, optional): Defaults to None, the global one.

    Returns:
        tuple[int, int, int, int]: Top, bottom, left and right.

    Raises:
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
        partners (Tensor): ``(N,)``.
        box (tuple[int, int, int, int]): Top, bottom, left and right.

    Returns:
        Tensor: ``(N, C, H, W)``, a new tensor.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
    return mixed


def mix(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """λ times each image and 1 - λ times its partner.

    Args:
        images (Tensor): ``(N, ...)``, floating point.
        partners (Tensor): ``(N,)``.
        lam (float): λ in [0, 1].

    Returns:
        Tensor: Of the shape of ``images``.

    Raises:
        ValueError: If the images are integers.
    """
    if not images.is_floating_point():
        raise ValueError(f'only floating point can be blended, got {images.dtype}')
    return torch.lerp(images[partners], images, lam)


def mix_targets(targets: Tensor, partners: Tensor, lam: float) -> Tensor:
    """λ times each soft target and 1 - λ times that of its partner.

    Args:
        targets (Tensor): ``(N, classes)``, one-hot or soft, floating point.
        partners (Tensor): ``(N,)``.
        lam (float): λ in [0, 1].

    Returns:
        Tensor: ``(N, classes)``.

    Raises:
        ValueError: If the targets have another shape, or are integers.
    """
    _check_soft(targets)
    return mix(targets, partners, lam)


# What a config names ------------------------------------------------------------------------------


@MODELS.register_module()
class CutMix:
    """Pastes a box of another image of the batch into each image, with its labels.

    One λ ~ Beta(α, α) and one box for the batch, of the area 1 - λ where the border does not cut
    it off; each image gets another one as its partner. Nothing given is changed in place.

    For segmentation all maps of a data sample that are as large as the images go along: labels
    with their ignored pixels, edges, depths. The box lies where all images of the batch show a
    picture, so padding stays where the data samples say it is. For classification the soft targets
    are mixed by the areas.

    Paper: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, ICCV 2019, arXiv 1905.04899. Code: ``clovaai/CutMix-PyTorch``.

    Args:
        prob (float): Probability that a batch is mixed. Defaults to 0.5.
        alpha (float): α above 0. Defaults to 1.0: λ is uniform.

    Shape:
        - inputs: ``(N, C, H, W)``; a batch of one stays as it is.
        - targets: N data samples with pixel maps ``(..., H, W)``, or ``(N, classes)``.

    Raises:
        ValueError: If the targets cannot be mixed.

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
        """Mixes a batch, or hands it on as it is.

        Args:
            inputs (Tensor): ``(N, C, H, W)``.
            targets (Sequence[BaseDataElement] | Tensor): Data samples, or ``(N, classes)``.

        Returns:
            tuple: The same two, mixed.
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
    """Blends each image of a batch with another one, and their soft targets; for classification.

    One λ ~ Beta(α, α) for the batch; each image gets another one as its partner. Nothing given is
    changed in place.

    Paper: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv 1710.09412.
    Code: ``facebookresearch/mixup-cifar10``.

    Args:
        alpha (float): α above 0. Defaults to 0.2: mostly close to one of the two images.

    Shape:
        - inputs: ``(N, ...)``; a batch of one stays as it is.
        - targets: ``(N, classes)``, one-hot or soft.

    Raises:
        ValueError: If the targets cannot be mixed; those of a segmentation never can.

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
            tuple: The same two, mixed.
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
    """mmsegmentation's own preprocessor, with batch augmentations that a config can name.

    It gives the stock class, which takes a callable but builds none from a config.

    Args:
        batch_augments (list[dict], optional): What is applied to each training batch, in this
            order: ``dict(type='mmkd_plugin.CutMix')``, or any registered callable that takes and
            gives ``(inputs, data_samples)``. Defaults to None.
        **kwargs: The arguments of mmsegmentation's ``SegDataPreProcessor``.

    Returns:
        SegDataPreProcessor: That of mmsegmentation.

    Raises:
        ImportError: If mmsegmentation is not installed.
        ValueError: If one of them cannot mix label maps.

    Examples:
        >>> data_preprocessor = dict(
        ...     type='mmkd_plugin.SegDataPreProcessor',
        ...     mean=[123.675, 116.28, 103.53],
        ...     std=[58.395, 57.12, 57.375],
        ...     bgr_to_rgb=True,
        ...     size=(512, 1024),
        ...     batch_augments=[dict(type='mmkd_plugin.CutMix', prob=0.5)])
    """
    # Only here: configs of mmdetection read this module too, and do not need mmsegmentation.
    from mmseg.models.data_preprocessor import SegDataPreProcessor as Stock

    augments = batch_augments or ()
    if isinstance(augments, Mapping) or callable(augments):
        augments = [augments]
    return Stock(batch_augments=InOrder(augments) if augments else None, **kwargs)


class InOrder:
    """Batch augmentations, one after the other.

    Args:
        augments (Sequence[dict | Callable]): Configs of them, or callables.

    Raises:
        ValueError: If one of them cannot mix label maps.
    """

    def __init__(self, augments: Sequence[dict | Callable]) -> None:
        self.augments = [MODELS.build(a) if isinstance(a, Mapping) else a for a in augments]
        if any(isinstance(augment, Mixup) for augment in self.augments):
            raise ValueError(ONLY_SOFT)

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> tuple[Tensor, Sequence]:
        """Applies them.

        Args:
            inputs (Tensor): ``(N, C, H, W)``.
            data_samples (Sequence): N data samples.

        Returns:
            tuple: The same two, mixed.
        """
        for augment in self.augments:
            inputs, data_samples = augment(inputs, data_samples)
        return inputs, data_samples


def use_stock_preprocessor(config: Any) -> None:
    """Turns each ``mmkd_plugin.SegDataPreProcessor`` in a config into mmsegmentation's, in place.

    The two differ in training only, and neither has weights.

    Args:
        config (Any): A dict, or a list or tuple of them, however nested.
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
    """Return ``value`` if it is a number in [0, 1], else raise naming the argument.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it lies outside, or is NaN.
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
    """Height and width of what no image pads; padding is to the right and at the bottom."""
    shapes = [size, *(sample.metainfo.get('img_shape', size)[:2] for sample in samples)]
    return min(int(shape[0]) for shape in shapes), min(int(shape[1]) for shape in shapes)


def _maps_of(samples: Sequence[BaseDataElement], size: tuple[int, int]) -> list[Maps]:
    """The pixel maps of each data sample, all checked whether or not the batch is then mixed."""
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
    mixed = sample.clone()  # shares what is in it
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
