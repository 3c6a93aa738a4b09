"""Checks of data sets: a few images are loaded, and the files of all are looked up."""

from __future__ import annotations

import copy
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmkd_plugin.annotations import fits
from mmkd_plugin.cache.images import all_transforms, leaves, wrappers_with_pipelines
from mmkd_plugin.foreign import explained
from mmkd_plugin.running.remembering import images_to_load, keeps_images
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.training_data.classes import check_categories
from mmkd_plugin.training_data.errors import DataError, one_line, place_of, without_images
from mmkd_plugin.training_data.expected import Expected
from mmkd_plugin.training_data.pipelines import CheckedPipeline, known_of, name_of
from mmkd_plugin.words import short, some

#: Images whose files and boxes are looked up without loading them; of more, every n-th.
LISTED = 100_000
#: Transforms with a generator of their own, which nothing seeds for each image.
OWN_GENERATOR = ('Albu',)


def check_data(dataset: Any, expected: Expected, samples: int = 8, key: str = 'train') -> None:
    """Loads a few images of a data set, and looks up the files of all.

    The random state is kept, and so is that of the transforms.

    Args:
        dataset (BaseDataset): The data set, built, or a wrapper.
        expected (Expected): What the model can learn from.
        samples (int): How many images are loaded, spread over the data set. Defaults to 8.
        key (str): What the messages call the data, ``'train'``, ``'val'`` or ``'unlabelled'``.
            Defaults to ``'train'``.

    Raises:
        DataError: If there is no image, a file is missing or cannot be read, an image and its
            label map differ in size, or a label or a box cannot be learned from.
    """
    parts = [leaf for leaf in leaves(dataset) if hasattr(leaf, 'get_data_info')]
    for leaf in parts:
        if len(leaf) == 0:
            raise DataError(without_images(leaf, key))
        _check_list(leaf, expected, key)
    around = list(wrappers_with_pipelines(dataset))
    inside = [leaf for wrapper in around for leaf in leaves(wrapper)]
    with random_state_kept():
        for leaf in parts:
            transforms = getattr(getattr(leaf, 'pipeline', None), 'transforms', None)
            if transforms is None:
                continue
            packs = leaf not in inside
            pipeline = CheckedPipeline(copy.deepcopy(transforms), expected, packs, sizes=True)
            for index in _spread(len(leaf), max(samples // len(parts), 1)):
                pipeline(leaf.get_data_info(index))
        for wrapper in around:
            _check_wrapper(wrapper, expected, max(samples // len(parts), 1))


def _check_wrapper(wrapper: Any, expected: Expected, samples: int) -> None:
    """Mixes a few images, and checks what the model would be given."""
    trial = copy.copy(wrapper)
    trial.pipeline = copy.deepcopy(wrapper.pipeline)
    checks = CheckedPipeline([], expected)
    for index in _spread(len(trial), samples):
        about = known_of(trial.get_data_info(index))
        try:
            mixed = trial[index]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f'{name_of(about)}: the pipeline of {type(wrapper).__name__} failed: '
                f'{one_line(error)}'
            ) from error
        checks.check_packed(mixed, about)


def check_switch(dataset: Any, expected: Expected, hook: Hook) -> None:
    """Tries the pipeline that a hook puts in place of that of the data set, late in training."""
    key, config = f'custom_hooks: {type(hook).__name__}.switch_pipeline', hook.switch_pipeline
    try:
        transforms = Compose(config).transforms
    except Exception as error:
        raise ValueError(explained(error, key, config)) from error
    pipeline = CheckedPipeline(transforms, expected)
    with random_state_kept():
        try:
            pipeline(next(leaves(dataset)).get_data_info(0))
        except DataError as error:
            raise DataError(f'{key}: {error}') from error


def warn_of_kept_state(dataset: Any) -> None:
    """Says of a resumed run which transforms have forgotten what they keep between images.

    Args:
        dataset (BaseDataset): The training data, built, or a wrapper.
    """
    forgets = images_to_load(dataset) is None
    names = dict.fromkeys(
        type(transform).__name__
        for transform in all_transforms(dataset)
        if (forgets and keeps_images(transform)) or type(transform).__name__ in OWN_GENERATOR
    )
    if names:
        print_log(
            f'--resume: {some(names)} of the pipeline kept images or random numbers of earlier '
            'iterations, and no checkpoint has them: the run goes on with other images than one '
            'that never ended. Mosaic and MixUp in a MultiImageMixDataset are resumed exactly',
            logger='current',
            level=logging.WARNING,
        )


def _spread(total: int, count: int) -> Iterator[int]:
    """Indices from the first to the last."""
    yield from dict.fromkeys(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())


def _check_list(leaf: Any, expected: Expected, key: str) -> None:
    """Looks up what the data set knows of its images: their files, and their boxes."""
    classes = (getattr(leaf, 'metainfo', None) or {}).get('classes')
    if not fits(classes, list[str] | str | None):
        raise DataError(
            f'{place_of(key)}.metainfo.classes must be the names of the classes, got '
            f'{short(classes)}'
        )
    check_categories(leaf, classes, key)
    transforms = getattr(getattr(leaf, 'pipeline', None), 'transforms', None) or ()
    fields = []
    if any(type(t).__name__ == 'LoadImageFromFile' and _is_local(t) for t in transforms):
        fields.append('img_path')
    if any(getattr(t, 'with_seg', False) and _is_local(t) for t in transforms):
        fields.append('seg_map_path')
    files = {field: [] for field in fields}
    boxes, listed = 0, range(0, len(leaf), -(-len(leaf) // LISTED))
    for index in listed:
        info = leaf.get_data_info(index)
        for field in fields:
            if isinstance(info.get(field), str):
                files[field].append(info[field])
        instances = info.get('instances')
        if instances is not None:
            boxes += len(instances)
            _check_boxes(instances, info, expected)
        else:
            boxes = max(boxes, 1)
    for field, paths in files.items():
        missing = _missing(paths)
        if missing:
            what = 'images' if field == 'img_path' else 'label maps'
            raise DataError(
                f'{place_of(key)}: there is no {missing[0]}; {len(missing)} of '
                f'{len(paths)} {what} are missing'
            )
    if not boxes and key == 'train':
        raise DataError(
            f'{place_of(key)}: none of its {len(leaf)} images has a box of a class that '
            f'is trained; does {getattr(leaf, "ann_file", "") or "its annotation file"} call the '
            f'classes {some(classes or (), limit=5)}, as `metainfo` does?'
        )


def _check_boxes(instances: Sequence[dict], info: dict, expected: Expected) -> None:
    name = name_of(info)
    for one in instances:
        box, label = one.get('bbox'), one.get('bbox_label')
        if one.get('ignore_flag'):
            continue
        if isinstance(label, int) and expected.wrong(np.array([label])):
            raise DataError(f'{name}: a box has the label {label}, and {expected.told()}')
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            continue  # rotated boxes and the like
        left, top, right, bottom = box
        if not (right > left and bottom > top):
            raise DataError(f'{name}: the box {list(box)} (x1, y1, x2, y2) has no area')
        width, height = info.get('width') or right, info.get('height') or bottom
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise DataError(
                f'{name}: the box {list(box)} (x1, y1, x2, y2) lies outside the image of '
                f'{width}×{height} pixels'
            )


def _is_local(transform: Any) -> bool:
    """Whether a transform reads files of this machine and needs them all."""
    backend = getattr(transform, 'backend_args', None) or {}
    client = getattr(transform, 'file_client_args', None) or {}
    local = backend.get('backend', 'local') == client.get('backend', 'local') == 'local'
    return local and not getattr(transform, 'ignore_empty', False)


def _missing(paths: Sequence[str]) -> list[str]:
    """The paths where no file is; each folder is listed once."""
    folders = defaultdict(list)
    for path in paths:
        if '://' not in path:
            folders[os.path.dirname(path)].append(path)  # noqa: PTH120 (faster on many paths)
    missing = []
    for folder, inside in folders.items():
        try:
            names = {entry.name for entry in os.scandir(folder or '.')}
        except OSError:
            names = set()
        missing += [path for path in inside if os.path.basename(path) not in names]  # noqa: PTH119
    return missing
