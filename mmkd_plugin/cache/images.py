"""The images of a training set: their names, how they are loaded, and at which scale."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmkd_plugin.registry import TRANSFORMS

#: Settings of a transform that say where files are, not what is in them.
_WHERE = ('backend_args', 'file_client_args')


def kind_of(transform: dict) -> str:
    """The class of a transform in a config, without its scope."""
    kind = transform['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def common_root(datasets: Sequence[Any]) -> str:
    """The folder to which names of images are relative: ``data_root``, or what several share.

    Args:
        datasets (Sequence): Configs of data sets.

    Examples:
        >>> common_root([dict(data_root='data/voc/2007'), dict(data_root='data/voc/2012')])
        'data/voc'
    """
    roots = {str(dataset.get('data_root') or '') for dataset in datasets}
    if len(roots) == 1 or '' in roots:
        return min(roots)
    if len({Path(root).is_absolute() for root in roots}) > 1:
        roots = {str(Path.cwd() / root) for root in roots}
    return os.path.commonpath(roots)


def image_name(info: dict, root: str) -> str:
    """What a cache calls an image: its path below the root, the same on every machine.

    Args:
        info (dict): What a data set or a data sample knows of it: ``img_path``, else ``img_id``.
        root (str): See :func:`common_root`.

    Examples:
        >>> image_name(dict(img_path='data/voc/JPEGImages/1.jpg'), 'data/voc/')
        'JPEGImages/1.jpg'
    """
    path = info.get('img_path')
    if path is None:
        return f'id:{info["img_id"]}'
    if '://' in path or not root:
        return path.split(root, 1)[-1] if root else path
    return PurePath(os.path.relpath(path, root)).as_posix()


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers, built."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for one in inner:
        yield from leaves(one)


def images_of(dataset: Any, root: str) -> dict[str, tuple[Any, int]]:
    """The images of a built data set by their names, each once: which part has it, and its index.

    Args:
        dataset (BaseDataset): The data set, or a wrapper.
        root (str): See :func:`common_root`.
    """
    images: dict[str, tuple[Any, int]] = {}
    for leaf in leaves(dataset):
        leaf.full_init()
        for index in range(len(leaf)):
            images.setdefault(image_name(leaf.get_data_info(index), root), (leaf, index))
    return images


class ScaledImages(Dataset):
    """Images as they were loaded, and brought to a scale.

    Args:
        images (Sequence[tuple]): A part of a data set and an index in it, as :func:`images_of`
            finds them.
        loading (Sequence[dict]): Transforms that load an image.
        scale (dict, optional): A transform that resizes it, None for none.
    """

    def __init__(
        self,
        images: Sequence[tuple[Any, int]],
        loading: Sequence[dict],
        scale: dict | None,
    ) -> None:
        self.images = images
        self.load = [TRANSFORMS.build(transform) for transform in loading]
        self.scale = TRANSFORMS.build(scale) if scale else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """The image ``(C, H, W)`` in pixel values, and its height and width as it was loaded."""
        leaf, position = self.images[index]
        results = leaf.get_data_info(position)
        for transform in self.load:
            results = transform(results)
        loaded = tuple(results['img'].shape[:2])
        if self.scale is not None:
            results = self.scale(results)
        image = np.atleast_3d(results['img']).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image)), loaded


def loading_part(pipeline: Sequence[dict]) -> list[dict]:
    """The transforms of a pipeline that load the image.

    Raises:
        ValueError: If there is none.
    """
    kinds = [kind_of(transform) for transform in pipeline]
    for position, kind in enumerate(kinds):
        if kind.startswith('Load') and 'Image' in kind:
            return [
                transform
                for transform, name in zip(pipeline[: position + 1], kinds)
                if 'Annotations' not in name
            ]
    raise ValueError(
        'the train pipeline has no transform that loads an image (`Load...Image...`): '
        f'{", ".join(kinds)}'
    )


def training_scale(pipeline: Sequence[dict]) -> dict | None:
    """The transform that brings an image to the scale at which it is mostly trained on.

    ``Resize`` and other fixed ones stay; ``RandomResize`` becomes one to its ``scale`` (to the
    middle of the two if it has two), ``RandomChoiceResize`` to the middle one of its ``scales``.

    Args:
        pipeline (Sequence[dict]): The train pipeline.

    Returns:
        dict, optional: A transform, None if the pipeline resizes nothing.

    Raises:
        ValueError: If it cannot be told.

    Examples:
        >>> training_scale([dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0),
        ...                      keep_ratio=True)])
        {'type': 'Resize', 'scale': (2048, 1024), 'keep_ratio': True}
    """
    found = [_fixed(transform) for transform in _flat(pipeline) if 'Resize' in kind_of(transform)]
    if not found:
        return None
    if any(plain(one) != plain(found[0]) for one in found) or None in found:
        names = ', '.join(kind_of(t) for t in _flat(pipeline) if 'Resize' in kind_of(t))
        raise ValueError(
            f'the train pipeline ({names}) does not say one scale; give it: --scale WIDTH,HEIGHT'
        )
    return found[0]


def scales_at_random(pipeline: Sequence[dict]) -> bool:
    """Whether a train pipeline shows an image in different sizes.

    Examples:
        >>> scales_at_random([dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
        False
    """
    return any(
        kind_of(transform) in ('RandomResize', 'RandomChoiceResize')
        for transform in _flat(pipeline)
    )


def mirrors(pipeline: Sequence[dict]) -> bool:
    """Whether a train pipeline exchanges left and right in some of the images.

    Examples:
        >>> mirrors([dict(type='RandomFlip', prob=0.5)])
        True
    """
    return any(
        kind_of(transform).startswith('RandomFlip')
        and 'horizontal' in plain([transform.get('direction', 'horizontal')])[0]
        for transform in _flat(pipeline)
    )


def _flat(pipeline: Sequence[Any]) -> Iterator[dict]:
    """The transforms of a pipeline and of those that choose or wrap some."""
    for transform in pipeline:
        if isinstance(transform, (list, tuple)):
            yield from _flat(transform)
        elif 'transforms' in transform:
            yield from _flat(transform['transforms'])
        else:
            yield transform


def _fixed(transform: dict) -> dict | None:
    """A resizing transform without its randomness, None if that is not known."""
    kind, settings = kind_of(transform), dict(transform)
    name = settings.pop('type')
    scope = name.rpartition('.')[0] + '.' if isinstance(name, str) and '.' in name else ''
    if kind in ('Resize', 'ResizeShortestEdge', 'ResizeToMultiple', 'FixScaleResize'):
        return dict(transform)
    inner = scope + settings.pop('resize_type', 'Resize')
    if kind == 'RandomResize':
        scale = settings.pop('scale')
        settings.pop('ratio_range', None)
        if isinstance(scale[0], (list, tuple)):
            scale = tuple((a + b) // 2 for a, b in zip(*scale))
        return dict(type=inner, scale=scale, **settings)
    if kind == 'RandomChoiceResize':
        scales = sorted(settings.pop('scales'), key=_area)
        return dict(type=inner, scale=scales[len(scales) // 2], **settings)
    return None


def _area(scale: Any) -> float:
    return scale[0] * scale[1] if isinstance(scale, (list, tuple)) else scale


def plain(transforms: Any) -> Any:
    """Settings of transforms that tell whether two are the same, as JSON keeps them."""
    if isinstance(transforms, dict):
        return {
            key: kind_of(transforms) if key == 'type' else plain(value)
            for key, value in sorted(transforms.items())
            if key not in _WHERE
        }
    if isinstance(transforms, (list, tuple)):
        return [plain(value) for value in transforms]
    return json.loads(json.dumps(transforms, default=str))
