"""A batch as plain data: tensors, arrays, texts and containers, which a file may hold safely."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

#: Modules in which the classes of data samples are looked up: no file chooses what is imported.
MODULES = (
    'mmengine.structures',
    'mmseg.structures',
    'mmdet.structures',
    'mmdet.structures.bbox',
    'mmdet.structures.mask',
    'mmkd_plugin.cache.geometry',
)

#: Key of a dict that stands for an object: the name of its class.
KIND = '<object>'

#: Attributes with which an object of mmdet or of ours is made anew, in their order, by its class.
OBJECTS = dict(
    HorizontalBoxes=('tensor',),
    RotatedBoxes=('tensor',),
    BitmapMasks=('masks', 'height', 'width'),
    PolygonMasks=('masks', 'height', 'width'),
    Geometry=('matrix', 'loaded', 'packed', 'window'),
)


def packed(value: Any) -> Any:
    """A batch as plain data.

    Args:
        value (Any): Tensors, arrays, data samples and plain values, in dicts, lists and tuples.

    Raises:
        TypeError: If there is an object of another kind in it.

    Examples:
        >>> import torch
        >>> from mmengine.structures import PixelData
        >>> kept = packed(dict(inputs=torch.ones(2), sample=PixelData(data=torch.zeros(1, 2, 2))))
        >>> unpacked(kept)['sample'].data.shape
        torch.Size([1, 2, 2])
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return packed(np.asarray(value))
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray)):
        return value
    if isinstance(value, BaseDataElement):
        return {
            KIND: type(value).__name__,
            'meta': packed(dict(value.metainfo_items())),
            'data': packed(dict(sorted(value.items()))),
        }
    if type(value).__name__ in OBJECTS:
        keys = OBJECTS[type(value).__name__]
        return {KIND: type(value).__name__, **{key: packed(getattr(value, key)) for key in keys}}
    if isinstance(value, Mapping):
        return {key: packed(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(packed, value))
    if isinstance(value, list):
        return [packed(one) for one in list.__iter__(value)]
    raise TypeError(f'{type(value).__name__} in the batch is no plain data')


def unpacked(value: Any) -> Any:
    """The batch that :func:`packed` has turned into plain data.

    Args:
        value (Any): The plain data.

    Raises:
        ValueError: If it names a class that is not one of a data sample.
    """
    if isinstance(value, Mapping) and KIND in value:
        kind = _class(value[KIND])
        if not issubclass(kind, BaseDataElement):
            return kind(*(unpacked(value[key]) for key in OBJECTS[value[KIND]]))
        element = kind()
        element.set_metainfo(unpacked(value['meta']))
        element.set_data(unpacked(value['data']))
        return element
    if isinstance(value, Mapping):
        return {key: unpacked(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(unpacked, value))
    return value.clone() if isinstance(value, Tensor) else value


def _class(name: Any) -> type:
    for module in MODULES:
        try:
            found = getattr(importlib.import_module(module), str(name), None)
        except ImportError:
            continue
        if isinstance(found, type) and (
            issubclass(found, BaseDataElement) or found.__name__ in OBJECTS
        ):
            return found
    raise ValueError(f'{name} is no class of data samples')
