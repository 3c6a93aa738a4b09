"""Classes of a data set: their names against its file, the head of the model, and another set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch.utils.data import Dataset

from mmkd_plugin.cache.images import leaves
from mmkd_plugin.categories import categories_of
from mmkd_plugin.training_data.errors import DataError, place_of
from mmkd_plugin.training_data.expected import Expected
from mmkd_plugin.words import did_you_mean, some

#: Of more classes, a message has the first alone.
LISTED = 100


def check_is_list(leaf: Any, key: str) -> None:
    """Refuses one text in place of the names of the classes, whose letters would count as names.

    mmengine has put the lines of a file in its place if there is a file of this name.

    Args:
        leaf (BaseDataset): A data set that is no wrapper.
        key (str): What messages call it, ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        DataError: If there is one, and it is not that of the class of the data set.
    """
    text = (getattr(leaf, 'metainfo', None) or {}).get('classes')
    usual = (getattr(leaf, 'METAINFO', None) or {}).get('classes')
    if not isinstance(text, str) or text == usual:
        return
    here = f'{place_of(key)}.metainfo.classes={text!r} is a string'
    if Path(text).suffix or '/' in text:
        raise DataError(f'{here}, and there is no file of this name with a class in each line')
    names = [name.strip() for name in text.split(',') if name.strip()] or ['...']
    comma = ',' * (len(names) == 1)
    raise DataError(
        f'{here}, each letter of which would be a class: write ({some(map(repr, names))}{comma})'
    )


def check_categories(leaf: Any, classes: Any, key: str) -> None:
    """Refuses names of classes that are not those of the labels which a COCO file gives.

    Of names of which the file has some alone, mmdet would count labels anew; of none, that is found
    by the boxes. Names in another order than the labels would name other classes.

    Args:
        leaf (BaseDataset): A data set that is no wrapper.
        classes (Any): The names that its meta information has.
        key (str): What messages call it, ``'train'`` or ``'val'``.

    Raises:
        DataError: If they are not.
    """
    known = getattr(leaf, 'cat_ids', None)
    if not known or isinstance(classes, str) or not classes:
        return
    try:
        categories = categories_of(leaf.ann_file)
    except (OSError, ValueError):  # not of this machine, or no JSON: it was loaded all the same
        return
    here, names = f'{place_of(key)}.metainfo.classes', [one['name'] for one in categories]
    missing = [name for name in classes if name not in names]
    if missing and len(known) < len(classes):
        raise DataError(
            f'{here} names {some(map(repr, missing), limit=5)}, and {leaf.ann_file} has the '
            f'categories {some(names, limit=5)}{did_you_mean(missing[0], names)}'
        )
    name_of = {one['id']: one['name'] for one in categories}
    numbers = getattr(leaf, 'cat2label', None) or {}
    order = [name_of.get(one) for one in sorted(numbers, key=numbers.get)]
    if order != list(classes) and set(order) == set(classes) and len(order) == len(classes):
        also = '' if key == 'train' else ', or sort the categories of the file'
        raise DataError(
            f'{here} is in another order than the labels that {type(leaf).__name__} gives the '
            f'categories of {leaf.ann_file}: write ({some(map(repr, order), LISTED)}){also}'
        )


def check_same_order(train: Dataset, val: Dataset) -> None:
    """Refuses validation data whose labels number the classes in another order.

    Args:
        train (BaseDataset): The training data, built, or a wrapper.
        val (BaseDataset): The validation data.

    Raises:
        DataError: If both have the same classes, and not in the same order.
    """
    ours, theirs = _names_of(train), _names_of(val)
    if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
        number = next(i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other)
        raise DataError(
            f'{place_of("train")}.metainfo.classes and {place_of("val")}.metainfo.classes have the '
            f'same names in different orders, from number {number} on: '
            f'({some(map(repr, ours), LISTED)}) and ({some(map(repr, theirs), LISTED)}). The model '
            'numbers its classes as in training: write the order of the labels in both'
        )


def check_count(dataset: Dataset, expected: Expected) -> None:
    """Refuses a detector with more classes than its data set names; warns of a segmentor.

    What a detector finds of a class without name is an error when it is measured; extra scores of a
    segmentor may be meant.

    Args:
        dataset (BaseDataset): The training data, built, or a wrapper.
        expected (Expected): What the model can learn from.

    Raises:
        DataError: If a detector has more.
    """
    names = _names_of(dataset)
    if not names or expected.classes is None:
        return
    count, key = expected.classes - expected.stuff, expected.key
    if count <= len(names):
        return
    if expected.pixels and (expected.classes, len(names)) == (2, 1):
        return  # one score, whose other class has no name
    text = (
        f'{expected.head}.{key}={count}, and the data set names {len(names)} '
        f'class{"es" * (len(names) > 1)}'
    )
    if not expected.pixels:
        raise DataError(f'{text}; write {key}={len(names)}')
    print_log(
        f'{text}: no measure counts the other {count - len(names)}. Write '
        f'{key}={len(names)}, or name them in metainfo.classes, unless this is meant',
        logger='current',
        level=logging.WARNING,
    )


def _names_of(dataset: Dataset) -> tuple[str, ...] | None:
    """The names of the classes of a data set, None if its parts do not agree on them."""
    each = [(getattr(leaf, 'metainfo', None) or {}).get('classes') for leaf in leaves(dataset)]
    found = {tuple(one) if isinstance(one, (list, tuple)) else None for one in each}
    return found.pop() if len(found) == 1 else None
