"""Geometry: how a pipeline changed an image, and stored maps warped in the same way.

A teacher that ran once on each image gave maps of the image as loaded. The student sees it resized,
cropped, flipped and padded at random. :func:`replay` does to the maps what a :class:`Geometry` says
was done to the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Of a pixel or of a cell of a map: less is rounding error of the steps of a pipeline.
TINY = 1e-6


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

    Examples:
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

    Examples:
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
