"""A config of a big model as that of a small one of the same family, by the names of its keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd_plugin.words import type_name

#: Classes of the shrunken models, by library.
CLASSES = {'mmseg': 3, 'mmdet': 2}


class Rung(NamedTuple):
    """How far a model is shrunken.

    Args:
        name (str): What it is called in the table.
        width (int): Channels are divided by it.
        depth (bool): Whether layers are left out.
        side (int, optional): Height and width of the images, pixels. None is the largest size
            that the config names, or 512.
    """

    name: str
    width: int
    depth: bool
    side: int | None


#: Tried in this order: a model whose widths are written in its code trains on the second one, one
#: that pools with a large window on the third.
RUNGS = (
    Rung('small', 8, True, 128),
    Rung('shallow', 1, True, 128),
    Rung('large images', 1, True, 512),
    Rung('whole', 1, False, None),
)

CHANNELS = re.compile(r'(^|_)(channels?|dims?|feats)$')
#: Counts that may be one, or that many at most.
COUNTS = dict(
    num_convs=1,
    stacked_convs=1,
    num_stacked_convs=1,
    num_queries=10,
    sos_token_num=10,  # of SAN, which wants as many as queries
    num_proposals=10,
    num_dn_queries=10,
    num_matching_queries=10,
    max_per_img=10,
    max_per_image=10,  # of MaskFormer, which has fewer scores than 100 then
    num_points=1024,
    nms_pre=100,
    num=32,
)
LISTS_OF_LAYERS = ('depths', 'num_layers', 'num_blocks', 'stage_blocks', 'layers')
SIZES = ('img_size', 'image_size', 'crop_size', 'size', 'random_size_range')
#: Keys that name files to download.
FILES = ('init_cfg', 'pretrained', 'pretrained_cfg', 'load_from')
#: A file without weights: SAN initialises itself from a file, and fails without one.
NOTHING = 'nothing://'


def shrunken(cfg: Config, library: str, rung: Rung) -> dict[str, Any]:
    """The model of a config, made small.

    Args:
        cfg (Config): The config; it stays as it is.
        library (str): ``'mmseg'`` or ``'mmdet'``.
        rung (Rung): How far.

    Returns:
        dict[str, Any]: The model's config, its data preprocessor in it.
    """
    whole = cfg.to_dict()
    model = whole['model']
    if whole.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', whole['data_preprocessor'])
    shrink = Shrinking(library, rung, side_of(model, rung), _classes(model, library))
    return shrink(model)


def side_of(model: Mapping[str, Any], rung: Rung) -> int:
    """Height and width of the images for a model, pixels."""
    if rung.side is not None:
        return rung.side
    sizes = [
        max(value) if isinstance(value, (list, tuple)) else value
        for key, value in _leaves(model)
        if key in ('img_size', 'image_size', 'crop_size', 'input_size', 'size')
    ]
    return max([size for size in sizes if isinstance(size, int)], default=512)


def classes_of(model: Mapping[str, Any]) -> int:
    """The least number of classes that a head of a model has, 1 if none says it."""
    keys = 'num_classes', 'num_things_classes'
    found = [value for key, value in _leaves(model) if key in keys and isinstance(value, int)]
    return max(min(found, default=1), 1)


def _leaves(value: Any, key: str = '') -> list[tuple[str, Any]]:
    """All values below a dict that are no dicts, with their keys."""
    if isinstance(value, Mapping):
        return [pair for name, inner in value.items() for pair in _leaves(inner, name)]
    if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
        return [pair for inner in value for pair in _leaves(inner, key)]
    return [(key, value)]


def _classes(model: Mapping[str, Any], library: str) -> dict[int, int]:
    """What numbers of classes become."""
    found = {v for key, v in _leaves(model) if key == 'num_classes' and isinstance(v, int)}
    new = {value: min(value, CLASSES[library]) for value in found}
    counts = dict(_leaves(model))
    if isinstance(things := counts.get('num_things_classes'), int):
        stuff = counts.get('num_stuff_classes') or 0
        new[things + stuff] = _things(things) + _stuff(stuff)
    return new


def _things(count: int) -> int:
    return min(count, CLASSES['mmdet'])


def _stuff(count: int) -> int:
    return min(count, 1)


class Shrinking:
    """The rules.

    Args:
        library (str): Whose model it is.
        rung (Rung): How far it is shrunken.
        side (int): Height and width of the images, pixels.
        classes (dict[int, int]): What numbers of classes become.
    """

    def __init__(self, library: str, rung: Rung, side: int, classes: dict[int, int]) -> None:
        self.library, self.rung, self.side, self.classes = library, rung, side, classes

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.of_dict(dict(value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self, value))
        return value

    def of_dict(self, config: dict[str, Any]) -> dict[str, Any]:
        """A dict by the names of its keys."""
        kind = type_name(config.get('type') or '')
        if self.rung.width > 1:
            config = {**self.defaults(config), **config}
        shrunk = {key: self.of_key(key, value) for key, value in config.items() if key not in FILES}
        if kind == 'STDCNet':
            shrunk['num_convs'] = max(shrunk.get('num_convs', 2), 2)  # it wants more than one
        if kind == 'MultimodalEncoderDecoder':
            shrunk['pretrained'] = NOTHING
        if kind == 'CLIPTextEncoder':  # which finds its classes by the name of a data set
            names = [f'class {i}' for i in range(max(self.classes.values()))]
            shrunk |= dict(dataset_name=None, vocabulary=names, templates=['a {}.'])
        if kind in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            shrunk['type'] = 'BN'
        if kind.endswith(('DataPreProcessor', 'DataPreprocessor')):
            shrunk |= _same_colours(config)
        if self.rung.depth:
            shrunk |= _fewer_layers(config, kind)
        if 'stride' in shrunk and 'crop_size' in shrunk:  # of sliding windows
            shrunk['stride'] = (self.side // 2, self.side // 2)
        return shrunk

    def of_key(self, key: str, value: Any) -> Any:
        """A value by the name of its key."""
        if isinstance(value, bool) or value is None:
            return value
        if key == 'num_classes' and isinstance(value, int):
            return self.classes[value]
        if key == 'num_things_classes':
            return _things(value)
        if key == 'num_stuff_classes':
            return _stuff(value)
        if key == 'class_weight' and isinstance(value, (list, tuple)):
            return self.of_weights(value)
        if key in SIZES:
            return _numbers(value, lambda _: self.side)
        if key == 'size_divisor' and isinstance(value, int):
            return min(value, self.side)
        if key in COUNTS and isinstance(value, int):
            return min(value, COUNTS[key])
        if self.rung.width > 1:
            if CHANNELS.search(key) and _all_numbers(value):
                return _numbers(value, self.narrow)
            if key == 'num_groups':
                return _numbers(value, lambda v: max(v // self.rung.width, 1))
            if key == 'widen_factor':
                return value / self.rung.width
        return self(value)

    def of_weights(self, value: Sequence[float]) -> Sequence[float]:
        """Weights of classes, with one more for the background."""
        if (count := len(value)) in self.classes:
            return value[: self.classes[count]]
        if count - 1 in self.classes:
            return [*value[: self.classes[count - 1]], value[-1]]
        return value

    def narrow(self, channels: int) -> int:
        return channels if channels < self.rung.width else channels // self.rung.width

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The channels that a class has when its config does not say them."""
        found = {}
        for name, parameter in _parameters(class_of(config.get('type'), self.library)).items():
            value = parameter.default
            if CHANNELS.search(name) and _all_numbers(value) and not isinstance(value, bool):
                found[name] = value
            elif isinstance(value, dict) and 'num_groups' in value:
                found[name] = dict(value)
            elif name == 'widen_factor':
                found[name] = value
        return found


def class_of(kind: Any, library: str) -> type | None:
    """The class that a ``type`` names, None if it is of a library that is not installed."""
    if not isinstance(kind, str):
        return kind
    try:
        with MODELS.switch_scope_and_registry(library) as registry:
            return registry.get(kind)
    except Exception:  # whatever that library raises
        return None


def _parameters(cls: type | None) -> dict[str, inspect.Parameter]:
    """The arguments of a class with defaults, those of its bases too if it hands them on."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__ if inspect.isclass(cls) else ():
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for one in parameters:
            if one.default is not inspect.Parameter.empty:
                found.setdefault(one.name, one)
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def _same_colours(config: Mapping[str, Any]) -> dict[str, Any]:
    """Means and standard deviations for all data sets, where the images have three channels."""
    if len(config.get('mean') or ()) != 3:
        return {}
    return dict(mean=[120.0] * 3, std=[60.0] * 3)


def _fewer_layers(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The keys of a dict that say how many layers there are, with fewer."""
    new: dict[str, Any] = {}
    for key in LISTS_OF_LAYERS:
        value = config.get(key)
        if isinstance(value, (list, tuple)) and _all_numbers(value):
            new[key] = _numbers(value, lambda _: 1)
    layers, taken = config.get('num_layers'), config.get('out_indices')
    if isinstance(layers, int) and isinstance(taken, (list, tuple)):
        new |= dict(num_layers=len(taken), out_indices=type(taken)(range(len(taken))))
    elif isinstance(layers, int) and layers > 3:  # three take turns with the levels of a neck
        new['num_layers'] = 3 if layers == 9 else 2
    if 'Res' in kind and isinstance(config.get('depth'), int):
        new['depth'] = min(config['depth'], 50)
    if 'deepen_factor' in config:
        new['deepen_factor'] = 0.1
    return new


def _all_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_all_numbers, value))
    return isinstance(value, int)


def _numbers(value: Any, change: Callable[[int], int]) -> Any:
    """The numbers of nested sequences, changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(_numbers(one, change) for one in value)
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value
