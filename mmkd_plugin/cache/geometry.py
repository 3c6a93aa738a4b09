"""Geometry: how a pipeline warped an image, and the same warp of stored maps.

A cache has maps of each image as loaded. The student sees the image resized, cropped, flipped and
padded at random. A :class:`Geometry` describes these steps, and :func:`replay` applies them to the
maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: A smaller part of a pixel, or of a cell of a map, is rounding error.
TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a pipeline resized, mirrored and moved an image along both axes.

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``, its centre is at ``i + 0.5``.

    Args:
        matrix (np.ndarray): ``(3, 3)``, float64: maps ``(x, y, 1)`` in the image as loaded to the
            image as packed.
        loaded (tuple[int, int]): Height and width of the image as loaded, pixels.
        packed (tuple[int, int]): Height and width of the image as packed for the network, pixels.
        window (tuple[float, float, float, float], optional): Top, left, bottom and right of the
            picture in the image as packed. The rest is padding. Defaults to None: the part of the
            loaded image that is not cut off.

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
        """Returns the geometry of an unchanged image.

        Args:
            shape (Sequence[int]): Height and width, pixels. Further numbers are ignored.

        Returns:
            Geometry: The identity.
        """
        size = (int(shape[0]), int(shape[1]))
        return cls(np.eye(3), size, size)

    def then(
        self,
        matrix: np.ndarray,
        packed: Sequence[int],
        area: Sequence[float] | None = None,
    ) -> Geometry:
        """Adds one more step.

        Args:
            matrix (np.ndarray): ``(3, 3)``, from the image before the step to the image after it.
            packed (Sequence[int]): Height and width after the step, pixels.
            area (Sequence[float], optional): Top, left, bottom and right of the area that the step
                may fill with the image. Defaults to None: the image after the step.

        Returns:
            Geometry: The geometry after the step.
        """
        matrix = np.asarray(matrix, np.float64)
        packed = (int(packed[0]), int(packed[1]))
        window = _moved(self.window, matrix, area or (0, 0, *packed))
        return Geometry(matrix @ self.matrix, self.loaded, packed, window)

    @property
    def mirrors(self) -> bool:
        """Whether left and right are exchanged."""
        return bool(self.matrix[0, 0] < 0)

    def of_mirrored(self) -> Geometry:
        """Returns the geometry from the mirrored image as loaded to the same image as packed."""
        mirror = np.array([[-1, 0, self.loaded[1]], [0, 1, 0], [0, 0, 1]])
        return Geometry(self.matrix @ mirror, self.loaded, self.packed, self.window)


def _moved(
    box: Sequence[float], matrix: np.ndarray, limits: Sequence[float]
) -> tuple[float, float, float, float]:
    """Applies a matrix to a box (top, left, bottom, right) and clips it to limits."""
    top, left, bottom, right = box
    (x0, y0, _), (x1, y1, _) = matrix @ [left, top, 1], matrix @ [right, bottom, 1]
    corners = min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)
    low, high = (limits[0], limits[1]) * 2, (limits[2], limits[3]) * 2
    return tuple(float(v) for v in np.clip(corners, low, high))


@dataclass(frozen=True)
class _Axis:
    """The positions of a warped map along one axis, and their places in the stored map.

    Args:
        start (int): First position in the picture; the ones before are padding.
        stop (int): First position behind the picture.
        cells (np.ndarray): Centres of the positions in between, in cells of the stored map from the
            centre of its first cell.
        step (float): Distance between two positions, in cells.
    """

    start: int
    stop: int
    cells: np.ndarray
    step: float


def _axis(
    geometry: Geometry, dim: int, count: int, canvas: float, stored: int, covers: float
) -> _Axis:
    """Finds the places of ``count`` positions along one axis in a map of ``stored`` cells."""
    scale, shift = geometry.matrix[1 - dim, 1 - dim], geometry.matrix[1 - dim, 2]
    pixels = canvas / count
    centres = (np.arange(count) + 0.5) * pixels
    low, high = geometry.window[dim], geometry.window[dim + 2]
    # rounding errors must not decide whether a position is padding
    shown = np.flatnonzero((centres > low - TINY) & (centres < high - TINY))
    start, stop = (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)
    per_pixel = stored / covers
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
    """Warps maps of an image as a pipeline warped the image.

    The centre of each position is traced back to the image as loaded. Maps that are enlarged, or
    keep their size, are read bilinearly. Maps that are reduced are read with a triangle as wide as
    the step between positions, so that no cell is skipped (antialiasing). Maps are constant beyond
    the borders of the image. Positions at the exact centre of a cell, as after flips and crops by
    whole cells, get its values bit for bit.

    Args:
        maps (Tensor): ``(C, h, w)``, maps of the image as loaded, at any stride.
        geometry (Geometry): How the image was warped.
        size (Sequence[int]): Height and width of the result.
        canvas (Sequence[float], optional): Height and width, in pixels of the network's input, that
            the result covers: the image as packed, and the padding of its batch to the right and
            below. Defaults to None: the image as packed.
        mode (str): ``'bilinear'`` or ``'nearest'``. Defaults to ``'bilinear'``.
        fill (float | Tensor): Value of padding, or ``(C,)``, one for each channel. Defaults to 0.0.
        covers (Sequence[float], optional): Height and width, in pixels of the image as loaded, that
            ``maps`` covers from the top left corner. It is larger than the image if the teacher
            padded it. Defaults to None: the image as loaded.

    Returns:
        Tensor: ``(C, *size)``, of the type of ``maps``.

    Raises:
        ValueError: If the mode is unknown, or the maps are integers and the mode is bilinear.

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
        _axis(geometry, dim, size[dim], canvas[dim], stored=maps.shape[1 + dim], covers=covers[dim])
        for dim in (0, 1)
    ]
    rows, cols = axes
    out = maps.new_empty(maps.shape[0], *size)
    shown = out[:, rows.start : rows.stop, cols.start : cols.stop]
    if shown.shape != out.shape:
        out[:] = torch.as_tensor(fill).view(-1, 1, 1)
    if shown.numel():
        shown.copy_(_resampled(maps, axes, _cells_of_image(geometry, maps, covers), mode))
    return out


def inside(
    geometry: Geometry, size: Sequence[int], canvas: Sequence[float] | None = None
) -> Tensor:
    """Returns a mask of the positions that show the picture; the others are padding.

    Args:
        geometry (Geometry): How the image was warped.
        size (Sequence[int]): Height and width of the mask.
        canvas (Sequence[float], optional): As for :func:`replay`. Defaults to None.

    Returns:
        Tensor: ``(*size)``, booleans, False where :func:`replay` fills.
    """
    canvas = canvas or geometry.packed
    mask = torch.zeros(*size, dtype=torch.bool)
    rows, cols = (
        _axis(geometry, dim, size[dim], canvas[dim], stored=1, covers=1) for dim in (0, 1)
    )
    mask[rows.start : rows.stop, cols.start : cols.stop] = True
    return mask


def _cells_of_image(geometry: Geometry, maps: Tensor, covers: Sequence[float]) -> list[int]:
    """Counts the cells along each axis that show the image, not a teacher's own padding."""
    return [
        min(math.ceil(loaded * cells / covered - TINY), cells)
        for loaded, cells, covered in zip(geometry.loaded, maps.shape[1:], covers)
    ]


def _plan(axis: _Axis, count: int, mode: str) -> tuple[int, np.ndarray]:
    """Plans how to read maps of ``count`` cells along an axis.

    Returns:
        tuple[int, np.ndarray]: The first cell that is read, and either the cell of each position,
        ``(positions,)``, or the weights of the cells, ``(positions, cells)``. Both count cells from
        the first one that is read.
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


def _resampled(maps: Tensor, axes: Sequence[_Axis], counts: Sequence[int], mode: str) -> Tensor:
    """Reads the positions of both axes in maps; ``counts`` cells along each show the image."""
    plans = [_plan(axis, count, mode) for axis, count in zip(axes, counts)]
    for dim, (first, reads) in enumerate(plans, 1):  # cuts first, so the rest does less work
        maps = maps.narrow(dim, first, reads.shape[-1] if reads.ndim == 2 else 1 + reads.max())
    for dim, (_, reads) in enumerate(plans, 1):
        maps = _weigh(maps, dim, reads) if reads.ndim == 2 else _take(maps, dim, reads)
    return maps


def _take(maps: Tensor, dim: int, cells: np.ndarray) -> Tensor:
    """Picks cells; cells in a row need no index."""
    steps = np.diff(cells)
    if (steps == 1).all():
        return maps
    if (steps == -1).all():
        return maps.flip(dim)
    return maps.index_select(dim, torch.from_numpy(cells).to(maps.device))


def _weigh(maps: Tensor, dim: int, weights: np.ndarray) -> Tensor:
    """Computes weighted sums of cells, at least in float32 and without autocast."""
    exact = torch.promote_types(maps.dtype, torch.float32)
    maps, factors = maps.to(exact), torch.from_numpy(weights).to(maps.device, exact)
    with torch.autocast(maps.device.type, enabled=False):
        return factors @ maps if dim == 1 else maps @ factors.T
