"""The images of a training set: their names, their loading, and their scale."""

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
from mmkd_plugin.words import type_name

#: Settings of a transform about the place of files, not about their content.
_WHERE = ('backend_args', 'file_client_args')


def kind_of(transform: dict) -> str:
    """Returns the name of a transform's class in a config, without its scope."""
    return type_name(transform['type'])


def common_root(datasets: Sequence[Any]) -> str:
    """Returns the folder to which names of images are relative.

    Args:
        datasets (Sequence[dict]): Configs of data sets.

    Returns:
        str: The ``data_root`` of the data sets, or the folder that theirs have in common.

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
    """Returns the name of an image in a cache, which is the same on every machine.

    Args:
        info (dict): Metadata of the image from a data set or a data sample, with ``img_path`` or
            ``img_id``.
        root (str): The folder that :func:`common_root` returns.

    Returns:
        str: The path of the image below the root, or a name made of its id.

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
    """Yields the built data sets inside wrappers."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for one in inner:
        yield from leaves(one)


def wrappers_with_pipelines(dataset: Any) -> Iterator[Any]:
    """Yields the wrappers that put a pipeline behind those of the data sets inside."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        return
    if hasattr(dataset, 'pipeline'):
        yield dataset
        return
    for one in inner:
        yield from wrappers_with_pipelines(one)


def all_transforms(dataset: Any) -> Iterator[Any]:
    """Yields the transforms of a built data set and its wrappers, and those inside others."""
    for part in (*leaves(dataset), *wrappers_with_pipelines(dataset)):
        yield from _inside(getattr(part, 'pipeline', None))


def _inside(pipeline: Any) -> Iterator[Any]:
    for transform in getattr(pipeline, 'transforms', None) or ():
        yield transform
        yield from _inside(transform)


def images_of(dataset: Any, root: str) -> dict[str, tuple[Any, int]]:
    """Lists the images of a built data set, each once.

    Args:
        dataset (BaseDataset): The data set, or a wrapper.
        root (str): The folder that :func:`common_root` returns.

    Returns:
        dict[str, tuple[Any, int]]: By the name of the image, the data set that has it and its index
        there.
    """
    images: dict[str, tuple[Any, int]] = {}
    for leaf in leaves(dataset):
        leaf.full_init()
        for index in range(len(leaf)):
            images.setdefault(image_name(leaf.get_data_info(index), root), (leaf, index))
    return images


class ScaledImages(Dataset):
    """A data set of images that are loaded and resized, without other transforms.

    Args:
        images (Sequence[tuple[Any, int]]): A data set and an index in it for each image, as
            :func:`images_of` returns them.
        loading (Sequence[dict]): Configs of the transforms that load an image.
        scale (dict, optional): Config of a transform that resizes the image, None for none.
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
        """Returns the image ``(C, H, W)`` in pixel values, and its height and width as loaded."""
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
    """Returns the transforms of a pipeline that load the image.

    Args:
        pipeline (Sequence[dict]): Configs of transforms.

    Returns:
        list[dict]: The transforms up to the one that loads the image, without annotations.

    Raises:
        ValueError: If no transform loads an image.
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
    """Returns a transform that resizes images to the typical scale of a train pipeline.

    ``Resize`` and other fixed transforms stay as they are. ``RandomResize`` becomes a resize to its
    ``scale``, or to the middle of its two scales. ``RandomChoiceResize`` becomes a resize to the
    middle one of its ``scales``.

    Args:
        pipeline (Sequence[dict]): The train pipeline.

    Returns:
        dict | None: Config of the transform, None if the pipeline does not resize.

    Raises:
        ValueError: If the pipeline has several scales, or one that is not known.

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
    """Returns whether a train pipeline resizes images at random.

    Examples:
        >>> scales_at_random([dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
        False
    """
    return any(
        kind_of(transform) in ('RandomResize', 'RandomChoiceResize')
        for transform in _flat(pipeline)
    )


def mirrors(pipeline: Sequence[dict]) -> bool:
    """Returns whether a train pipeline exchanges left and right at random.

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
    """Yields the transforms of a pipeline, and those inside wrappers and choices."""
    for transform in pipeline:
        if isinstance(transform, (list, tuple)):
            yield from _flat(transform)
        elif 'transforms' in transform:
            yield from _flat(transform['transforms'])
        else:
            yield transform


def _fixed(transform: dict) -> dict | None:
    """Returns a resizing transform without its randomness, None if the transform is unknown."""
    kind, settings = kind_of(transform), dict(transform)
    name = settings.pop('type')
    scope = name.rpartition('.')[0] + '.' if isinstance(name, str) and '.' in name else ''
    if kind in ('Resize', 'ResizeShortestEdge', 'ResizeToMultiple', 'FixScaleResize'):
        return dict(transform)
    inner = settings.pop('resize_type', 'Resize')
    inner = scope + inner if isinstance(inner, str) else inner
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
    """Returns settings of transforms as JSON keeps them, to compare two of them."""
    if isinstance(transforms, dict):
        return {
            key: kind_of(transforms) if key == 'type' else plain(value)
            for key, value in sorted(transforms.items())
            if key not in _WHERE
        }
    if isinstance(transforms, (list, tuple)):
        return [plain(value) for value in transforms]
    return json.loads(json.dumps(transforms, default=str))
