"""Geometry: what a pipeline did to an image, and stored maps warped in the same way.

A teacher that ran once on each image gave maps of the image as loaded. The student sees it resized,
cropped, flipped and padded at random. :func:`recorded` makes a stock pipeline note what it does,
as a :class:`Geometry` in each data sample; :func:`replay` does the same to the maps.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import torch
from mmengine.registry import DefaultScope
from torch import Tensor

from mmkd_plugin.registry import TRANSFORMS

#: Where results and the metainfo of data samples hold the :class:`Geometry`.
KEY = 'mmkd_geometry'

#: Decimals of a map's cell that count: less is rounding error of the steps of a pipeline.
DECIMALS = 6

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
            raise ValueError(f'a geometry resizes, mirrors and moves; this matrix does more: {matrix}')
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
    inside = np.flatnonzero((centres > low - 1e-6) & (centres < high - 1e-6))
    start, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    per_pixel = maps / covers
    cells = ((centres[start:stop] - shift) / scale * per_pixel - 0.5).round(DECIMALS)
    return _Axis(start, stop, cells, round(abs(pixels / scale * per_pixel), DECIMALS))


def replay(
    maps: Tensor,
    geometry: Geometry,
    size: Sequence[int],
    canvas: Sequence[float] | None = None,
    mode: str = 'bilinear',
    fill: float = 0.0,
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
        fill (float): Value where there is padding. Defaults to 0.
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
    out = maps.new_full((maps.shape[0], *size), fill)
    if len(rows.cells) and len(cols.cells):
        for dim, axis in enumerate(axes):
            # A teacher's own padding is no part of the picture.
            count = int(np.ceil(geometry.loaded[dim] * maps.shape[1 + dim] / covers[dim] - 1e-6))
            maps = _read(maps, 1 + dim, axis, min(count, maps.shape[1 + dim]), mode)
        out[:, rows.start : rows.stop, cols.start : cols.stop] = maps
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


def _read(maps: Tensor, dim: int, axis: _Axis, count: int, mode: str) -> Tensor:
    """Reads maps at the positions of an axis, from the first ``count`` cells."""
    if mode == 'nearest':
        cells = np.floor(axis.cells + 0.5)
        return _take(maps, dim, np.clip(cells, 0, count - 1).astype(np.int64))
    if axis.step <= 1 and (axis.cells == axis.cells.round()).all():
        return _take(maps, dim, np.clip(axis.cells, 0, count - 1).astype(np.int64))
    first, weights = _weights(axis.cells, max(axis.step, 1.0), count)
    part = maps.narrow(dim, first, weights.shape[1])
    # Neither half precision nor what autocast would make of it: the weights have more digits.
    exact = torch.promote_types(maps.dtype, torch.float32)
    weights = torch.from_numpy(weights).to(maps.device, exact)
    with torch.autocast(maps.device.type, enabled=False):
        part = part.to(exact)
        part = weights @ part if dim == 1 else part @ weights.T
    return part.to(maps.dtype)


def _take(maps: Tensor, dim: int, cells: np.ndarray) -> Tensor:
    """Picks cells; in one piece where they follow each other."""
    steps = np.diff(cells)
    if (steps == 1).all():
        return maps.narrow(dim, int(cells[0]), len(cells))
    if (steps == -1).all():
        return maps.narrow(dim, int(cells[-1]), len(cells)).flip(dim)
    return maps.index_select(dim, torch.from_numpy(cells).to(maps.device))


def _weights(cells: np.ndarray, width: float, count: int) -> tuple[int, np.ndarray]:
    """A triangle around each position: the first cell it needs, and weights (positions, cells)."""
    first = int(np.clip(np.floor(cells.min() - width) + 1, 0, count - 1))
    last = int(np.clip(np.ceil(cells.max() + width) - 1, 0, count - 1))
    distances = np.abs(np.clip(cells, 0, count - 1)[:, None] - np.arange(first, last + 1))
    weights = np.clip(1 - distances / width, 0, None)
    return first, weights / weights.sum(1, keepdims=True)


# How stock transforms tell what they do ---------------------------------------------------------

#: What a step did: a matrix, and the area that it filled with pixels if that is not all it could.
Step = tuple[np.ndarray, 'Sequence[float] | None']


def _shape(results: dict) -> tuple[int, int]:
    return tuple(results['img'].shape[:2])


def _matrix(
    scale: Sequence[float] = (1, 1), shift: Sequence[float] = (0, 0)
) -> np.ndarray:
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
    'PackDetInputs': _pad,
    'PackSegInputs': _pad,
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
