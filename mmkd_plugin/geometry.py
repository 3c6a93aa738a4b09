"""Geometry: what a pipeline did to an image, and stored maps warped in the same way.

A teacher that ran once on each image gave maps of the image as loaded. The student sees it resized,
cropped, flipped and padded at random. :func:`recorded` makes a stock pipeline note what it does,
as a :class:`Geometry` in each data sample; :func:`replay` does the same to the maps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Callable

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from torch import Tensor

from mmkd_plugin.registry import TRANSFORMS

#: Where results and the metainfo of data samples hold the :class:`Geometry`.
KEY = 'mmkd_geometry'

#: Of a pixel or of a cell of a map: less is rounding error of the steps of a pipeline.
TINY = 1e-6

# What was done to an image --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where each pixel of an image went: resized, mirrored and moved, along both axes.

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``, its centre is at ``i + 0.5``.

    Args:
        matrix (np.ndarray): ``(3, 3)``, float64: from ``(x, y, 1)`` in the image as loaded to the
            image as packed.
        loaded (tuple[int, int]): Height and width of the image as loaded.
        packed (tuple[int, int]): Height and width of the image as packed for the network.
        window (tuple[float, float, float, float], optional): Top, left, bottom and right of what
            shows the picture in the image as packed; the rest is padding. Defaults to None: all of
            the loaded image that is not cut off.

    Raises:
        ValueError: If the matrix turns or shears.

    Example:
        >>> flipped = Geometry.of((4, 6)).then([[-1, 0, 6], [0, 1, 0], [0, 0, 1]], (4, 6))
        >>> flipped.matrix @ [0, 0, 1]
        array([6., 0., 1.])
    """

    matrix: np.ndarray
    loaded: tuple[int, int]
    packed: tuple[int, int]
    window: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, np.float64)
        if matrix[0, 1] or matrix[1, 0] or tuple(matrix[2]) != (0, 0, 1):
            raise ValueError(
                f'a geometry resizes, mirrors and moves; this matrix does more: {matrix}'
            )
        object.__setattr__(self, 'matrix', matrix)
        if self.window is None:
            object.__setattr__(
                self, 'window', _moved((0, 0, *self.loaded), matrix, (0, 0, *self.packed))
            )

    @classmethod
    def of(cls, shape: Sequence[int]) -> Geometry:
        """That of an image, height and width first, to which nothing was done."""
        size = (int(shape[0]), int(shape[1]))
        return cls(np.eye(3), size, size)

    def then(
        self,
        matrix: np.ndarray,
        packed: Sequence[int],
        area: Sequence[float] | None = None,
    ) -> Geometry:
        """What it is after one more step.

        Args:
            matrix (np.ndarray): ``(3, 3)``, from the image before the step to the image after it.
            packed (Sequence[int]): Height and width after it.
            area (Sequence[float], optional): Top, left, bottom and right of what the step filled
                with pixels. Defaults to None: all that it could.
        """
        matrix = np.asarray(matrix, np.float64)
        packed = (int(packed[0]), int(packed[1]))
        window = _moved(self.window, matrix, area or (0, 0, *packed))
        return Geometry(matrix @ self.matrix, self.loaded, packed, window)

    @property
    def mirrors(self) -> bool:
        """Whether left and right have changed places."""
        return bool(self.matrix[0, 0] < 0)

    def of_mirrored(self) -> Geometry:
        """What was done to the mirrored image as loaded, left for right, to the same end."""
        mirror = np.array([[-1, 0, self.loaded[1]], [0, 1, 0], [0, 0, 1]])
        return Geometry(self.matrix @ mirror, self.loaded, self.packed, self.window)


def _moved(
    box: Sequence[float], matrix: np.ndarray, limits: Sequence[float]
) -> tuple[float, float, float, float]:
    """A box (top, left, bottom, right) after the matrix, within limits."""
    top, left, bottom, right = box
    (x0, y0, _), (x1, y1, _) = matrix @ [left, top, 1], matrix @ [right, bottom, 1]
    corners = min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)
    low, high = (limits[0], limits[1]) * 2, (limits[2], limits[3]) * 2
    return tuple(float(v) for v in np.clip(corners, low, high))


# What is done to the maps ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One axis of the positions to fill: which are in the picture, and where they are in the maps.

    Positions ``start`` to ``stop`` are; ``cells`` are their centres, counted in cells of the maps
    from the centre of the first one; ``step`` cells lie between two.
    """

    start: int
    stop: int
    cells: np.ndarray
    step: float


def _axis(
    geometry: Geometry, dim: int, count: int, canvas: float, maps: int, covers: float
) -> _Axis:
    scale, shift = geometry.matrix[1 - dim, 1 - dim], geometry.matrix[1 - dim, 2]
    pixels = canvas / count
    centres = (np.arange(count) + 0.5) * pixels
    low, high = geometry.window[dim], geometry.window[dim + 2]
    # A hair's breadth is rounding error; it must not decide whether a position is padding.
    shown = np.flatnonzero((centres > low - TINY) & (centres < high - TINY))
    start, stop = (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)
    per_pixel = maps / covers
    cells = (centres[start:stop] - shift) / scale * per_pixel - 0.5
    whole = cells.round()
    cells = np.where(np.abs(cells - whole) < TINY, whole, cells)
    return _Axis(start, stop, cells, abs(pixels / scale * per_pixel))


def replay(
    maps: Tensor,
    geometry: Geometry,
    size: Sequence[int],
    canvas: Sequence[float] | None = None,
    mode: str = 'bilinear',
    fill: float | Tensor = 0.0,
    covers: Sequence[float] | None = None,
) -> Tensor:
    """Warps maps of an image as the image was.

    The centre of each position is traced back to the image as loaded. Where the maps get larger,
    or stay as they are, they are read bilinearly there; where they get smaller, with a triangle as
    wide as the step between positions, so that no cell is skipped (antialiasing). Beyond the
    borders of the image they count as constant. Positions that meet cells exactly, after flips and
    crops by whole cells, get them bit for bit.

    Args:
        maps (Tensor): ``(C, h, w)``, maps that cover the image as loaded, at any stride.
        geometry (Geometry): What was done to the image.
        size (Sequence[int]): Height and width of the maps to make.
        canvas (Sequence[float], optional): Height and width, in pixels, of the network's input that
            they cover: the image as packed and the padding of its batch to the right and below.
            Defaults to None, the image as packed.
        mode (str): ``'bilinear'`` or ``'nearest'``. Defaults to ``'bilinear'``.
        fill (float | Tensor): Value where there is padding, or ``(C,)``, one for each channel.
            Defaults to 0.
        covers (Sequence[float], optional): Height and width, in pixels of the image as loaded, that
            the maps cover from its corner; more than the image for a teacher that padded it.
            Defaults to None, the image as loaded.

    Returns:
        Tensor: ``(C, *size)``, of the type of ``maps``.

    Raises:
        ValueError: If there is no such mode, or integers are to be read bilinearly.

    Example:
        >>> maps = torch.arange(8.0).view(1, 2, 4)
        >>> flip = Geometry.of((16, 32)).then([[-1, 0, 32], [0, 1, 0], [0, 0, 1]], (16, 32))
        >>> replay(maps, flip, (2, 5), canvas=(16, 40), fill=-1)
        tensor([[[ 3.,  2.,  1.,  0., -1.],
                 [ 7.,  6.,  5.,  4., -1.]]])
    """
    if mode not in ('bilinear', 'nearest'):
        raise ValueError(f"mode is 'bilinear' or 'nearest', not {mode!r}")
    if mode == 'bilinear' and not maps.is_floating_point():
        raise ValueError(f"maps of {maps.dtype} can be read with mode='nearest' only")
    canvas, covers = canvas or geometry.packed, covers or geometry.loaded
    axes = [
        _axis(geometry, dim, size[dim], canvas[dim], maps.shape[1 + dim], covers[dim])
        for dim in (0, 1)
    ]
    rows, cols = axes
    out = maps.new_empty(maps.shape[0], *size)
    shown = out[:, rows.start : rows.stop, cols.start : cols.stop]
    if shown.shape != out.shape:
        out[:] = torch.as_tensor(fill).view(-1, 1, 1)
    if shown.numel():
        plans = []
        for dim, axis in enumerate(axes, 1):
            # A teacher's own padding is no part of the picture.
            cells = math.ceil(geometry.loaded[dim - 1] * maps.shape[dim] / covers[dim - 1] - TINY)
            plans.append(_plan(axis, min(cells, maps.shape[dim]), mode))
        for dim, (first, reads) in enumerate(plans, 1):  # no work on what is cut off
            maps = maps.narrow(dim, first, reads.shape[-1] if reads.ndim == 2 else 1 + reads.max())
        for dim, (_, reads) in enumerate(plans, 1):
            maps = _weigh(maps, dim, reads) if reads.ndim == 2 else _take(maps, dim, reads)
        shown.copy_(maps)
    return out


def inside(
    geometry: Geometry, size: Sequence[int], canvas: Sequence[float] | None = None
) -> Tensor:
    """Which positions show the picture, and not padding.

    Args:
        geometry (Geometry): What was done to the image.
        size (Sequence[int]): Height and width of the maps.
        canvas (Sequence[float], optional): As for :func:`replay`.

    Returns:
        Tensor: ``(*size)``, of booleans: where :func:`replay` does not fill.
    """
    canvas = canvas or geometry.packed
    mask = torch.zeros(*size, dtype=torch.bool)
    rows, cols = (_axis(geometry, dim, size[dim], canvas[dim], 1, 1) for dim in (0, 1))
    mask[rows.start : rows.stop, cols.start : cols.stop] = True
    return mask


def _plan(axis: _Axis, count: int, mode: str) -> tuple[int, np.ndarray]:
    """How to read maps of ``count`` cells along an axis.

    Returns:
        tuple[int, np.ndarray]: The first cell that is needed, and from there on either the cell of
        each position, ``(positions,)``, or the weights of all, ``(positions, cells)``.
    """
    cells = np.floor(axis.cells + 0.5) if mode == 'nearest' else axis.cells
    if mode == 'nearest' or (axis.step < 1 + TINY and (cells == cells.round()).all()):
        cells = np.clip(cells, 0, count - 1).astype(np.int64)
        return int(cells.min()), cells - cells.min()
    width, cells = max(axis.step, 1.0), np.clip(cells, -0.5, count - 0.5)
    first = max(math.floor(cells.min() - width) + 1, 0)
    last = min(math.ceil(cells.max() + width) - 1, count - 1)
    distances = np.abs(cells[:, None] - np.arange(first, last + 1))
    weights = np.clip(1 - distances / width, 0, None)
    return first, weights / weights.sum(1, keepdims=True)


def _take(maps: Tensor, dim: int, cells: np.ndarray) -> Tensor:
    """Picks cells; in one piece where they follow each other."""
    steps = np.diff(cells)
    if (steps == 1).all():
        return maps
    if (steps == -1).all():
        return maps.flip(dim)
    return maps.index_select(dim, torch.from_numpy(cells).to(maps.device))


def _weigh(maps: Tensor, dim: int, weights: np.ndarray) -> Tensor:
    """Weighted sums, neither in half precision nor in what autocast would take."""
    exact = torch.promote_types(maps.dtype, torch.float32)
    maps, factors = maps.to(exact), torch.from_numpy(weights).to(maps.device, exact)
    with torch.autocast(maps.device.type, enabled=False):
        return factors @ maps if dim == 1 else maps @ factors.T


# How stock transforms tell what they do ---------------------------------------------------------

#: What a step did: a matrix, and the area that it filled with pixels if that is not all it could.
Step = tuple[np.ndarray, 'Sequence[float] | None']


def _shape(results: dict) -> tuple[int, int]:
    return tuple(results['img'].shape[:2])


def _matrix(scale: Sequence[float] = (1, 1), shift: Sequence[float] = (0, 0)) -> np.ndarray:
    """From (y, x) factors and pixels."""
    return np.array([[scale[1], 0, shift[1]], [0, scale[0], shift[0]], [0, 0, 1]], np.float64)


def _scaling(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    return _matrix(scale=(after[0] / before[0], after[1] / before[1]))


@contextmanager
def _watched(owner: Any, name: str) -> Iterator[list[tuple]]:
    """Notes arguments and result of each call of a method."""
    method, calls = getattr(owner, name), []
    before = vars(owner).get(name)

    def watched(*args: Any) -> Any:
        calls.append((*args, method(*args)))
        return calls[-1][-1]

    setattr(owner, name, watched)
    try:
        yield calls
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _resize(transform: Callable, results: dict) -> tuple[dict, Step]:
    before = _shape(results)
    results = transform(results)
    return results, (_scaling(before, _shape(results)), None)


def _resize_and_pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    if not transform.keep_ratio:
        return _resize(transform, results)
    from mmcv import rescale_size

    height, width = _shape(results)
    results = transform(results)
    after = rescale_size((width, height), results['scale'])[::-1]  # what the image had before Pad
    return results, (_scaling((height, width), after), None)


def _flip(transform: Callable, results: dict) -> tuple[dict, Step]:
    results = transform(results)
    height, width = _shape(results)
    direction = results['flip_direction'] if results['flip'] else None
    down = direction in ('vertical', 'diagonal')
    across = direction in ('horizontal', 'diagonal')
    scale, shift = (1 - 2 * down, 1 - 2 * across), (height * down, width * across)
    return results, (_matrix(scale, shift), None)


def _pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    return transform(results), (_matrix(), None)  # to the right and below


def _pack(transform: Callable, results: dict) -> tuple[dict, None]:
    return transform(results), None


def _cut(transform: Callable, results: dict) -> tuple[dict | None, Step | None]:
    """A crop or a shift looks at labels, never at pixels: given numbers for pixels, it tells by
    them which it took. 0 is what it filled."""
    image = results['img']
    height, width = image.shape[:2]
    numbers = np.arange(1, height * width + 1, dtype=np.int32)
    results['img'] = numbers.reshape(height, width, *(1,) * (image.ndim - 2))
    results = transform(results)
    if results is None:
        return None, None
    numbers = results['img'].reshape(_shape(results))
    to_y, to_x = divmod(int((numbers > 0).argmax()), numbers.shape[1])
    from_y, from_x = divmod(int(numbers[to_y, to_x]) - 1, width)
    rows, cols = int((numbers[:, to_x] > 0).sum()), int((numbers[to_y] > 0).sum())
    part = image[from_y : from_y + rows, from_x : from_x + cols]
    if (rows, cols) == numbers.shape:
        results['img'] = part
    else:
        results['img'] = np.zeros((*numbers.shape, *image.shape[2:]), image.dtype)
        results['img'][to_y : to_y + rows, to_x : to_x + cols] = part
    return results, (_matrix(shift=(to_y - from_y, to_x - from_x)), None)


def _center_crop(transform: Callable, results: dict) -> tuple[dict, Step]:
    before = _shape(results)
    results = transform(results)
    # Half of what is cut off; a side that was too short is padded at its end.
    shift = [-max(0, round((b - a) / 2)) for b, a in zip(before, _shape(results))]
    return results, (_matrix(shift=shift), None)


def _expand(transform: Callable, results: dict) -> tuple[dict, Step]:
    with _watched(transform, '_random_left_top') as calls:
        results = transform(results)
    left, top = calls[-1][-1] if calls else (0, 0)
    return results, (_matrix(shift=(top, left)), None)


def _center_crop_and_pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    with _watched(transform, '_crop_image_and_paste') as calls:
        results = transform(results)
    _, centre, size, (_, (top, bottom, left, right), _) = calls[-1]
    shift = [length // 2 - middle for length, middle in zip(size, centre)]
    return results, (_matrix(shift=shift), (top, left, bottom, right))


#: How the steps of stock transforms are noted.
REPLAYED: dict[str, Callable] = {
    'CenterCrop': _center_crop,
    'Expand': _expand,
    'FixScaleResize': _resize,
    'FixShapeResize': _resize_and_pad,
    'MinIoURandomCrop': _cut,
    'PackDetInputs': _pack,
    'PackSegInputs': _pack,
    'Pad': _pad,
    'RandomCenterCropPad': _center_crop_and_pad,
    'RandomChoiceResize': _resize,
    'RandomCrop': _cut,
    'RandomFlip': _flip,
    'RandomFlip_GLIP': _flip,
    'RandomResize': _resize,
    'RandomShift': _cut,
    'Resize': _resize,
    'ResizeShortestEdge': _resize,
    'ResizeToMultiple': _resize,
}

#: Stock transforms that leave each pixel in its place. What they change (colours, painted patches)
#: is not in maps of the image as loaded.
IGNORED = {
    'AdjustGamma', 'AutoContrast', 'Brightness', 'CLAHE', 'Color', 'ColorTransform', 'Contrast',
    'CutOut', 'Equalize', 'FilterAnnotations', 'GTBoxSubOne_GLIP', 'GenerateEdge', 'Invert',
    'LoadAnnotations', 'LoadDepthAnnotation', 'LoadEmptyAnnotations', 'LoadImageFromFile',
    'LoadImageFromNDArray', 'LoadImageFromNpyFile', 'LoadMultiChannelImageFromFiles',
    'LoadPanopticAnnotations', 'LoadProposals', 'LoadSingleRSImageFromFile', 'LoadTextAnnotations',
    'Normalize', 'PhotoMetricDistortion', 'Posterize', 'RGB2Gray', 'RandomCutOut', 'RandomDepthMix',
    'RandomErasing', 'RandomGrayscale', 'RandomSamplingNegPos', 'Rerange', 'SegRescale',
    'Sharpness', 'Solarize', 'SolarizeAdd', 'YOLOXHSVRandomAug',
}  # fmt: skip

#: Stock transforms that hold others, and the argument that does.
WRAPPERS = {
    'AutoAugment': 'policies',
    'Compose': 'transforms',
    'ProposalBroadcaster': 'transforms',
    'RandAugment': 'aug_space',
    'RandomApply': 'transforms',
    'RandomChoice': 'transforms',
    'RandomOrder': 'transforms',
}

#: Why some stock transforms cannot be replayed.
REFUSED = {
    name: reason
    for reason, names in {
        'it mixes several images': (
            'CachedMixUp', 'CachedMosaic', 'CopyPaste', 'MixUp', 'Mosaic', 'RandomMosaic',
        ),
        'it moves objects inside the image': ('InstaBoost',),
        'it turns, shears or moves images by parts of a pixel': (
            'RandomAffine', 'RandomRotFlip', 'RandomRotate', 'Rotate', 'ShearX', 'ShearY',
            'TranslateX', 'TranslateY',
        ),
        'what it holds does not find the image where other transforms do': (
            'KeyMapper', 'MultiBranch', 'TransformBroadcaster',
        ),
        'it is for volumes': (
            'BioMedical3DPad', 'BioMedical3DRandomCrop', 'BioMedical3DRandomFlip',
        ),
    }.items()
    for name in names
}  # fmt: skip


@TRANSFORMS.register_module()
class Recorded:
    """A stock transform, which notes what it did to the image in ``results['mmkd_geometry']``.

    What it gives and the random numbers that it draws are those of the transform. One that packs
    the inputs adds the :class:`Geometry` to the metainfo. :func:`recorded` makes these.

    Args:
        transform (dict): Config of a transform in :data:`REPLAYED`.

    Example:
        >>> _ = __import__('mmcv.transforms')
        >>> crop = Recorded(dict(type='CenterCrop', crop_size=(4, 2)))
        >>> results = crop(dict(img=np.zeros((6, 6, 3))))
        >>> results['mmkd_geometry'].matrix[:2, 2]
        array([-1., -2.])
    """

    def __init__(self, transform: dict) -> None:
        self.transform = TRANSFORMS.build(transform)
        self.name = type(self.transform).__name__
        if REPLAYED[self.name] is _pack:
            self.transform.meta_keys = (*self.transform.meta_keys, KEY)

    def __iter__(self) -> Iterator[Callable]:
        """As the wrappers of mmcv, which share random numbers among several runs."""
        return iter((self.transform,))

    def __call__(self, results: dict) -> dict | None:
        geometry = results.setdefault(KEY, Geometry.of(_shape(results)))
        if _shape(results) != geometry.packed:
            raise ValueError(
                f'`{self.name}` got an image of {_shape(results)} (height, width), not the '
                f'{geometry.packed} that the replayed transforms before it gave: one between them '
                'that is ignored changes the size of images'
            )
        results, step = REPLAYED[self.name](self.transform, results)
        if step is not None:
            matrix, area = step
            results[KEY] = geometry.then(matrix, _shape(results), area)
        return results

    def __repr__(self) -> str:
        return f'Recorded({self.transform!r})'


def recorded(
    pipeline: Sequence[dict],
    scope: str | None,
    ignore: Sequence[str] = (),
    place: str = 'pipeline',
) -> list[dict]:
    """The same pipeline, which notes what it does to images.

    Each data sample gets ``metainfo['mmkd_geometry']``, a :class:`Geometry`. Nothing else that the
    pipeline gives changes, nor the random numbers that it draws.

    Args:
        pipeline (Sequence[dict]): Configs of transforms of mmcv, mmseg and mmdet.
        scope (str, optional): In which their names are looked up, ``'mmseg'`` or ``'mmdet'``. None
            is the default scope.
        ignore (Sequence[str]): Types of other transforms, as in the config, that leave each pixel
            in its place. Defaults to ``()``.
        place (str): What messages call the pipeline. Defaults to ``'pipeline'``.

    Raises:
        ValueError: If what a transform does to an image cannot be replayed, or is not known.

    Example:
        >>> _ = __import__('mmcv.transforms')
        >>> steps = recorded([dict(type='LoadImageFromFile'), dict(type='Pad', size=(8, 8))], None)
        >>> [step['type'] for step in steps]
        ['LoadImageFromFile', 'mmkd_plugin.Recorded']
    """
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        return _recorded(list(pipeline), place, ignore, registry)


def _recorded(step: Any, place: str, ignore: Sequence[str], registry: Registry) -> Any:
    if isinstance(step, (list, tuple)):
        return [_recorded(s, f'{place}[{i}]', ignore, registry) for i, s in enumerate(step)]
    kind = step['type']
    found = registry.get(kind) if isinstance(kind, str) else kind
    name = kind if isinstance(kind, str) else kind.__name__
    if getattr(found, '__module__', '').startswith('mmkd_plugin.'):
        return step  # a dumped config of such a run has them
    known = _stock_name(found)
    if known in WRAPPERS:
        key = WRAPPERS[known]
        held = step[key] if key in step else inspect.signature(found).parameters[key].default
        return {**step, key: _recorded(held, f'{place}.{key}', ignore, registry)}
    if known in REPLAYED:
        if 'resize_type' in step:
            _check_resize(step['resize_type'], f'{place}.resize_type', registry)
        return dict(type='mmkd_plugin.Recorded', transform=step)
    if known in IGNORED or name in ignore:
        return step
    if known in REFUSED:
        raise ValueError(
            f'{place}: `{name}` cannot be replayed on stored maps: {REFUSED[known]}. {_REMEDY}'
        )
    if found is None:
        close = get_close_matches(name, [*REPLAYED, *IGNORED, *WRAPPERS], n=1)
        hint = f'; did you mean `{close[0]}`?' if close else ''
        raise ValueError(f'{place}: no transform `{name}` is registered{hint}')
    raise ValueError(
        f'{place}: what `{name}` does to an image is not known, so it cannot be replayed on stored '
        f"maps. If it leaves each pixel in its place, say ignore=('{name}',). {_REMEDY}"
    )


def _stock_name(found: type | None) -> str | None:
    stock = found is not None and found.__module__.split('.')[0] in ('mmcv', 'mmseg', 'mmdet')
    return found.__name__ if stock else None


def _check_resize(kind: Any, place: str, registry: Registry) -> None:
    found = registry.get(kind) if isinstance(kind, str) else kind
    if REPLAYED.get(_stock_name(found)) is not _resize:
        raise ValueError(f'{place}: `{kind}` is no resize that can be replayed. {_REMEDY}')


_REMEDY = (
    'Else take it out of the training pipeline, or train with the teacher itself in place of its '
    'stored maps'
)


def record_training(cfg: Config, ignore: Sequence[str] = ()) -> None:
    """Makes all pipelines with which a config trains note what they do, in place.

    Args:
        cfg (Config): With ``train_dataloader``: its data set, those inside wrappers, and the
            pipelines that hooks switch to.
        ignore (Sequence[str]): As for :func:`recorded`.

    Raises:
        ValueError: If one of them cannot be replayed, a data set mixes images, or the data
            preprocessor changes batches.
    """
    _check_batch_augments(cfg)
    for holder, key, place in train_pipelines(cfg):
        holder[key] = recorded(holder[key], cfg.get('default_scope'), ignore, place)


def train_pipelines(cfg: Config) -> Iterator[tuple[dict, str, str]]:
    """Finds the pipelines with which a config trains.

    Args:
        cfg (Config): With ``train_dataloader``.

    Yields:
        tuple[dict, str, str]: What holds a pipeline, under which key, and where in the config.

    Raises:
        ValueError: If a data set has a pipeline around another data set, which mixes images.
    """
    yield from _pipelines_of(cfg.train_dataloader['dataset'], 'train_dataloader.dataset')
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        if 'switch_pipeline' in hook:
            yield hook, 'switch_pipeline', f'custom_hooks[{i}].switch_pipeline'


def _pipelines_of(dataset: dict, place: str) -> Iterator[tuple[dict, str, str]]:
    inner = [(dataset['dataset'], f'{place}.dataset')] if 'dataset' in dataset else []
    for i, part in enumerate(dataset.get('datasets', ())):
        inner.append((part, f'{place}.datasets[{i}]'))
    if inner and dataset.get('pipeline'):
        raise ValueError(
            f'{place}: `{dataset["type"]}` has a pipeline around another data set, to mix several '
            f'images; that cannot be replayed on stored maps. {_REMEDY}'
        )
    for part in inner:
        yield from _pipelines_of(*part)
    if dataset.get('pipeline'):
        yield dataset, 'pipeline', f'{place}.pipeline'


def _check_batch_augments(cfg: Config) -> None:
    model = cfg.get('model') or {}
    holders = {'': cfg, 'model.': model, 'model.student.': model.get('student') or {}}
    for place, holder in holders.items():
        augments = (holder.get('data_preprocessor') or {}).get('batch_augments') or ()
        for augment in [augments] if isinstance(augments, dict) else augments:
            if augment['type'].split('.')[-1] != 'BatchFixedSizePad':
                raise ValueError(
                    f'{place}data_preprocessor.batch_augments: `{augment["type"]}` changes whole '
                    f'batches, which cannot be replayed on stored maps. {_REMEDY}'
                )
