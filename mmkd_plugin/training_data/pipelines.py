"""CheckedPipeline: a pipeline whose errors name the file."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose

from mmkd_plugin.teachers.classes import ZERO
from mmkd_plugin.training_data.errors import DataError, one_line
from mmkd_plugin.training_data.expected import Expected
from mmkd_plugin.words import some

#: Transforms of these packages leave the ids in label maps alone once the maps are loaded.
_STOCK = ('mmcv', 'mmdet', 'mmkd_plugin', 'mmseg')


class CheckedPipeline(Compose):
    """A pipeline whose errors name the file, and which refuses labels that the model cannot learn.

    Args:
        transforms (Sequence): Built transforms.
        expected (Expected): What the model can learn from.
        packs (bool): Whether its last step packs what the model is given; a wrapper of the data
            set does it elsewhere. Defaults to True.
        sizes (bool): Whether an image has to have the size that its annotations say. Defaults to
            False.

    Raises:
        DataError: When it is called, if a file is missing or cannot be used.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        expected: Expected,
        packs: bool = True,
        sizes: bool = False,
    ) -> None:
        self.transforms = transforms
        self.expected = expected
        self.packs = packs
        self.sizes = sizes

    def __call__(self, data: dict) -> dict | None:
        about = known_of(data)
        looked_at = False
        for transform in self.transforms:
            try:
                data = transform(data)
            except DataError:
                raise
            except Exception as error:
                reason = _other_zero_label(transform, data, about)
                raise DataError(reason or _reason(error, transform, about)) from error
            if data is None:
                return None
            if not looked_at and _is_loaded(data):
                looked_at = True
                self._check_loaded(data, about)
        if self.packs:
            self.check_packed(data, about)
        return data

    def _check_loaded(self, data: dict, about: dict) -> None:
        """Compares an image with its labels as they were loaded."""
        shape, labels = data['img'].shape[:2], data.get('gt_seg_map')
        if min(shape) < 2:
            raise DataError(f'{name_of(about)}: an image of {_size(shape)} pixels teaches nothing')
        said = data.get('height'), data.get('width')
        there = tuple(data.get('ori_shape', shape)[:2])
        if self.sizes and all(said) and said != there:
            raise DataError(
                f'{name_of(about)} has {_size(there)} pixels (width×height), and its annotations '
                f'say {_size(said)}'
            )
        if labels is not None:
            where = about['seg_map_path'] or f'the label map of {name_of(about)}'
            if labels.ndim != 2:
                raise DataError(
                    f'{where}: an array {labels.shape} is not a label map; it needs one channel '
                    'with the id of the class of each pixel'
                )
            if labels.shape not in (shape, tuple(data.get('ori_shape', shape)[:2])):
                raise DataError(
                    f'{where} has {_size(labels.shape)} pixels (width×height), and its image '
                    f'{about["img_path"]} has {_size(shape)}'
                )
            stock = all(type(t).__module__.partition('.')[0] in _STOCK for t in self.transforms)
            if stock and self.expected.pixels:
                self._check_ids(labels, where)

    def check_packed(self, data: dict, about: dict) -> None:
        """Checks what the model is given.

        Args:
            data (dict): What the last step has made.
            about (dict): What the data set knows of the image, from :func:`known_of`.

        Raises:
            DataError: If the model cannot learn from it.
        """
        if self.expected.head and not (isinstance(data, dict) and 'inputs' in data):
            raise DataError(
                f'{name_of(about)}: the pipeline gives no `inputs`; its last step packs them, such '
                "as dict(type='PackSegInputs') or dict(type='PackDetInputs')"
            )
        sample = data.get('data_samples') if isinstance(data, dict) else None
        if sample is None or isinstance(sample, (list, tuple)):
            return
        if 'gt_sem_seg' in sample and library_of_sample(sample) == 'mmseg':
            where = about['seg_map_path'] or f'the label map of {name_of(about)}'
            self._check_ids(np.asarray(sample.gt_sem_seg.data), where)
        elif self.expected.label_map and not any(
            key.startswith('gt_') for key in sample.all_keys()
        ):
            raise DataError(
                f'{name_of(about)}: it has no label map; the train pipeline needs a '
                "dict(type='LoadAnnotations') in front of what packs the inputs"
            )
        boxes = sample.get('gt_instances')
        if self.expected.masks and boxes is not None and 'masks' not in boxes:
            raise DataError(
                f'{name_of(about)}: its boxes have no masks, from which `{self.expected.masks}` '
                "learns; the train pipeline needs with_mask=True, as in dict(type='LoadAnnotations'"
                ', with_bbox=True, with_mask=True)'
            )
        labels = getattr(boxes, 'labels', None)
        if labels is not None and library_of_sample(sample) == 'mmdet':
            self._check_ids(np.asarray(labels), f'{name_of(about)}: the label of a box')

    def _check_ids(self, labels: np.ndarray, where: str) -> None:
        wrong = self.expected.wrong(labels)
        if wrong:
            ids = f'the id{"s" * (len(wrong) > 1)} {some(map(str, wrong), limit=5)}'
            raise DataError(f'{where} has {ids}, and {self.expected.told()}')


def library_of_sample(sample: Any) -> str:
    """The library of a data sample, ``'mmseg'`` or ``'mmdet'``."""
    return type(sample).__module__.partition('.')[0]


def _is_loaded(data: Any) -> bool:
    """Whether an image is there, with the labels that it will have."""
    labels = ('gt_seg_map', 'gt_bboxes', 'gt_bboxes_labels')
    shaped = isinstance(data, dict) and getattr(data.get('img'), 'ndim', 0) >= 2
    return shaped and any(key in data for key in labels)


def known_of(info: dict) -> dict:
    """What a data set knows of an image, as errors name it; None for what it does not know."""
    return {key: info.get(key) for key in ('img_path', 'img_id', 'seg_map_path')}


def name_of(about: dict) -> str:
    path = about.get('img_path')
    return str(path) if path is not None else f'image {about.get("img_id")}'


def _size(shape: Sequence[int]) -> str:
    return f'{shape[1]}×{shape[0]}'


def _reason(error: Exception, transform: Any, about: dict) -> str:
    """Why a transform failed, in one line that names a file."""
    kind, path, labels = type(transform).__name__, about['img_path'], about['seg_map_path']
    if type(error).__module__.startswith('mmkd_plugin') or _raised_here(error):
        return str(error)
    reads_labels = kind.startswith('LoadAnnotations')
    file = labels if reads_labels and labels else path
    if isinstance(error, KeyError) and error.args == ('seg_map_path',):
        return (
            f'{name_of(about)}: it has no label map; the data set needs '
            'data_prefix=dict(seg_map_path=...)'
        )
    if isinstance(error, FileNotFoundError):
        return f'there is no {error.filename or file}, the file of {name_of(about)}'
    if kind.startswith('Load') and isinstance(file, str) and Path(file).is_file():
        if Path(file).stat().st_size == 0:
            return f'{file}: the file is empty'
        if not reads_labels or labels:
            return f'{file}: the file cannot be read as an image ({one_line(error)})'
    return f'{name_of(about)}: {kind} failed: {one_line(error)}'


def _other_zero_label(transform: Any, data: Any, about: dict) -> str:
    """What is said of a data set and a transform that take label 0 for different things."""
    whole = data.get(ZERO) if isinstance(data, dict) else None
    loads = getattr(transform, ZERO, None)
    if None in (whole, loads) or whole == loads:
        return ''
    kind = type(transform).__name__
    return (
        f'{about["seg_map_path"] or name_of(about)}: dataset.{ZERO}={whole}, and {kind} of its '
        f'pipeline has {ZERO}={loads}; leave it out of {kind}, and write at the data set what is '
        'meant'
    )


def _raised_here(error: Exception) -> bool:
    """Whether an error was raised in this package, and so says what to do."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get('__name__', '') if frames else ''
    return isinstance(error, (OSError, ValueError)) and module.startswith('mmkd_plugin')
