"""Evaluators: the annotation file of a metric, against that of the data which it measures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from mmengine.logging import print_log
from torch.utils.data import Dataset

from mmkd_plugin.cache.images import leaves
from mmkd_plugin.training_data.errors import place_of
from mmkd_plugin.words import some

#: The id of an image, and the name of its file without folders, None if it has none.
Image = tuple[Any, str | None]


def warn_of_other_file(evaluator: Any, dataset: Dataset, key: str) -> None:
    """Says of each metric whose annotations are those of other images than it will be given.

    Another file about the same images is none, such as the boxes beside panoptic masks. A file in
    another format than COCO's may be about any.

    Args:
        evaluator (dict | list | None): The config of an evaluator, of a metric or of several.
        dataset (BaseDataset): The data that are measured, built, or a wrapper.
        key (str): What messages call both, ``'val'`` or ``'test'``.
    """
    read = [getattr(leaf, 'ann_file', None) for leaf in leaves(dataset)]
    if not all(isinstance(file, str) and _is_here(file) for file in read):
        return
    images = None
    for place, file in _files_of(evaluator, f'{key}_evaluator'):
        if not _is_here(file) or any(Path(file).samefile(one) for one in read):
            continue
        listed = _images_in(file)
        if listed is None:
            continue
        images = _images_of(dataset) if images is None else images
        if not _same(images, listed):
            files = list(dict.fromkeys(read))
            write = f'. Write {place}={files[0]}' if len(files) == 1 else ''
            print_log(
                f'{place}={file} is another file than that of {place_of(key)}, {some(files, 3)}, '
                f'and lists other images: what it measures is wrong, unless this is meant{write}',
                logger='current',
                level=logging.WARNING,
            )


def _files_of(evaluator: Any, place: str) -> Iterator[tuple[str, str]]:
    """The annotation files that the config of an evaluator names, and where."""
    if isinstance(evaluator, (list, tuple)):
        for number, one in enumerate(evaluator):
            yield from _files_of(one, f'{place}[{number}]')
    elif isinstance(evaluator, Mapping):
        if isinstance(evaluator.get('ann_file'), str):
            yield f'{place}.ann_file', evaluator['ann_file']
        yield from _files_of(evaluator.get('metrics'), f'{place}.metrics')


def _is_here(file: str) -> bool:
    return bool(file) and Path(file).is_file()


def _images_of(dataset: Dataset) -> list[Image]:
    """The images of a data set."""
    infos = (leaf.get_data_info(index) for leaf in leaves(dataset) for index in range(len(leaf)))
    return [(info.get('img_id'), _name(info.get('img_path'))) for info in infos]


def _images_in(file: str) -> list[Image] | None:
    """The images of a file in COCO's format, None if it has another one."""
    try:
        found = json.loads(Path(file).read_bytes())
        return [(image['id'], _name(image.get('file_name'))) for image in found['images']]
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def _name(path: Any) -> str | None:
    return PurePath(path).name if isinstance(path, str) else None


def _same(ours: list[Image], theirs: list[Image]) -> bool:
    """Whether two lists have the same images; one without names of files is compared by ids."""
    named = all(name for _, name in (*ours, *theirs))
    return len(ours) == len(theirs) and (
        set(ours) == set(theirs) if named else {i for i, _ in ours} == {i for i, _ in theirs}
    )
