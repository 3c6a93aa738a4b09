"""Geometry: the record of stock pipelines is right, and maps are warped in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkd_plugin.cache.geometry import Geometry, inside, replay


def resized(geometry: Geometry, height: int, width: int) -> Geometry:
    (h, w) = geometry.packed
    return geometry.then(np.diag([width / w, height / h, 1]), (height, width))


def flipped(geometry: Geometry, down: bool = False) -> Geometry:
    h, w = geometry.packed
    matrix = [[1, 0, 0], [0, -1, h], [0, 0, 1]] if down else [[-1, 0, w], [0, 1, 0], [0, 0, 1]]
    return geometry.then(np.array(matrix), (h, w))


def cropped(geometry: Geometry, top: int, left: int, height: int, width: int) -> Geometry:
    """Negative ``top`` and ``left`` pad there."""
    matrix = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    return geometry.then(matrix, (height, width))


def slow_replay(
    maps: np.ndarray,
    geometry: Geometry,
    size: Sequence[int],
    canvas: Sequence[float],
    fill: float,
) -> np.ndarray:
    """The same in float64, one axis at a time, over all cells."""
    back = np.linalg.inv(geometry.matrix)
    shown = []
    for dim in (0, 1):
        count, cells, one = size[dim], maps.shape[1 + dim], 1 - dim
        centres = (np.arange(count) + 0.5) * canvas[dim] / count
        low, high = geometry.window[dim], geometry.window[2 + dim]
        shown.append((centres > low - 1e-6) & (centres < high - 1e-6))
        source = centres * back[one, one] + back[one, 2]
        where = source * cells / geometry.loaded[dim] - 0.5
        step = abs(canvas[dim] / count * back[one, one]) * cells / geometry.loaded[dim]
        weights = 1 - np.abs(where[:, None] - np.arange(cells)) / max(step, 1)
        weights = np.maximum(weights, 0)
        weights[~shown[dim]] = 1  # not looked at
        weights /= weights.sum(1, keepdims=True)
        maps = np.moveaxis(np.moveaxis(maps, 1 + dim, -1) @ weights.T, -1, 1 + dim)
    return np.where(shown[0][:, None] & shown[1], maps, fill)


def by_grid_sample(
    maps: np.ndarray, geometry: Geometry, size: Sequence[int], canvas: Sequence[float]
) -> np.ndarray:
    rows = (np.arange(size[0]) + 0.5) * canvas[0] / size[0]
    cols = (np.arange(size[1]) + 0.5) * canvas[1] / size[1]
    x, y = np.meshgrid(cols, rows)
    back = np.linalg.inv(geometry.matrix) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    grid = back[:2].T.reshape(1, *size, 2) / geometry.loaded[::-1] * 2 - 1
    out = F.grid_sample(
        torch.from_numpy(maps)[None], torch.from_numpy(grid), 'bilinear', 'border', False
    )
    return out[0].numpy()


sides = st.integers(1, 40)


@st.composite
def geometries(draw: Any) -> Geometry:
    geometry = Geometry.of((draw(sides), draw(sides)))
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(['resize', 'flip', 'crop', 'pad']))
        h, w = geometry.packed
        if kind == 'resize':
            geometry = resized(geometry, draw(sides), draw(sides))
        elif kind == 'flip':
            geometry = flipped(geometry, draw(st.booleans()))
        elif kind == 'crop':
            top, left = draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))
            height, width = draw(st.integers(1, h - top)), draw(st.integers(1, w - left))
            geometry = cropped(geometry, top, left, height, width)
        else:
            top, left = draw(st.integers(0, 9)), draw(st.integers(0, 9))
            height, width = h + top + draw(st.integers(0, 9)), w + left + draw(st.integers(0, 9))
            geometry = cropped(geometry, -top, -left, height, width)
    return geometry


@settings(max_examples=300, deadline=None)
@given(geometries(), st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(sides, sides))
def test_maps_are_read_where_they_belong(geometry, cells, size, batch):
    maps = np.random.default_rng(0).standard_normal((2, *cells))
    canvas = tuple(p + b - 1 for p, b in zip(geometry.packed, batch, strict=True))
    out = replay(torch.from_numpy(maps), geometry, size, canvas, fill=-9.0).numpy()
    np.testing.assert_allclose(out, slow_replay(maps, geometry, size, canvas, -9.0), atol=1e-4)
    mask = inside(geometry, size, canvas).numpy()
    np.testing.assert_array_equal(mask, (out != -9).all(0))
    steps = [
        canvas[d] / size[d] / abs(geometry.matrix[1 - d, 1 - d]) * cells[d] / geometry.loaded[d]
        for d in (0, 1)
    ]
    if max(steps) <= 1:
        truth = by_grid_sample(maps, geometry, size, canvas)
        np.testing.assert_allclose(out[:, mask], truth[:, mask], atol=1e-4)
    nearest = replay(torch.from_numpy(maps), geometry, size, canvas, 'nearest', fill=-9.0)
    assert np.isin(nearest.numpy(), [*maps.flatten(), -9.0]).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_flips_and_crops_by_whole_cells_are_exact(dtype):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (3, 9, 13, dtype.itemsize), np.uint8)  # NaN and infinite ones too
    maps = torch.from_numpy(bits).view(dtype)[..., 0]
    mode = 'bilinear' if dtype.is_floating_point else 'nearest'
    for stride in (8, 7, 1):
        whole = Geometry.of((9 * stride, 13 * stride))
        for seed in range(20):
            rng = np.random.default_rng(seed)
            top, left = (int(v) for v in rng.integers(0, 4, 2))
            height, width = (int(v) for v in rng.integers(1, 6, 2))
            boxes = [side * stride for side in (top, left, height, width)]
            geometry = flipped(cropped(whole, *boxes))
            truth = maps[:, top : top + height, left : left + width].flip(2)
            if seed % 2:
                geometry, truth = flipped(geometry, down=True), truth.flip(1)
            # a detour back to the same pixels
            geometry = resized(resized(geometry, 77, 91), *geometry.packed)
            canvas = ((height + 2) * stride, (width + 1) * stride)
            out = replay(maps, geometry, (height + 2, width + 1), canvas, mode, fill=5)
            found = out[:, :height, :width].contiguous().view(torch.uint8)
            assert torch.equal(found, truth.contiguous().view(torch.uint8))
            assert (out[:, height:] == 5).all()
            assert (out[:, :, width:] == 5).all()


def test_nearest_takes_the_cell_that_a_position_lies_in():
    maps = torch.arange(35).view(1, 5, 7)
    geometry = cropped(resized(Geometry.of((50, 70)), 123, 171), 11, 9, 101, 140)
    out = replay(maps, geometry, (101, 140), mode='nearest')
    y, x = np.mgrid[:101, :140] + 0.5
    y, x = (y + 11) * 50 / 123 // 10, (x + 9) * 70 / 171 // 10
    np.testing.assert_array_equal(out[0].numpy(), y * 7 + x)


@pytest.mark.parametrize('factor', [1.3, 2, 3.7])
def test_smaller_maps_are_antialiased(factor):
    maps = torch.rand(3, 52, 37, dtype=torch.float64)
    size = round(52 / factor), round(37 / factor)
    out = replay(maps, resized(Geometry.of((520, 370)), 99, 111), size)
    truth = F.interpolate(maps[None], size, mode='bilinear', antialias=True)[0]
    torch.testing.assert_close(out, truth)
    board = (torch.arange(60)[:, None] + torch.arange(60)) % 2 * 1.0
    out = replay(board[None], cropped(Geometry.of((60, 60)), 3, 5, 44, 40), (12, 11))
    assert (out - 0.5).abs().max() < 0.1


def test_an_image_resized_by_opencv_is_where_its_maps_are():
    image = np.random.default_rng(0).random((53, 71, 3)).astype(np.float32)
    maps = torch.from_numpy(image).permute(2, 0, 1)
    truth = cv2.resize(image, (171, 119))
    out = replay(maps, resized(Geometry.of((53, 71)), 119, 171), (119, 171))
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), truth, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    maps = torch.randn(4, 20, 30).to(dtype)
    geometry = resized(Geometry.of((40, 60)), 47, 88)
    truth = replay(maps.float(), geometry, (47, 88)).to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        out = replay(maps, geometry, (47, 88))
    assert out.dtype == dtype
    assert torch.equal(out, truth)


def test_a_fill_for_each_channel():
    geometry = cropped(Geometry.of((4, 4)), -4, 0, 8, 4)
    out = replay(torch.ones(2, 2, 2), geometry, (4, 2), fill=torch.tensor([7.0, 8.0]))
    assert out[:, :2].flatten(1).tolist() == [[7] * 4, [8] * 4]
    assert (out[:, 2:] == 1).all()


def test_the_padding_of_a_teacher_is_not_read():
    """It padded 53 x 71 pixels, which it saw twice as large, to 128 x 160 for maps of stride 8."""
    y, x = torch.meshgrid(torch.arange(16) * 4 + 2.0, torch.arange(20) * 4 + 2.0, indexing='ij')
    maps = torch.stack([y, x])  # of the centres, in pixels as loaded
    maps[:, 14:], maps[:, :, 18:] = torch.nan, torch.nan  # beyond 53 and 71 pixels
    geometry = flipped(cropped(resized(Geometry.of((53, 71)), 106, 142), 13, 7, 93, 135))
    out = replay(maps, geometry, (93, 135), covers=(64, 80))
    y, x = np.mgrid[:93, :135] + 0.5
    np.testing.assert_allclose(out[0].numpy(), np.clip((y + 13) / 2, 2, 54), atol=1e-3)
    np.testing.assert_allclose(out[1].numpy(), np.clip((142 - x) / 2, 2, 70), atol=1e-3)


def test_an_image_of_which_nothing_is_left_is_filled():
    geometry = cropped(Geometry.of((8, 8)), 20, 20, 8, 8)
    assert (replay(torch.ones(1, 2, 2), geometry, (4, 4), fill=3.0) == 3).all()
    assert not inside(geometry, (4, 4)).any()


def test_replay_refuses_what_it_cannot_do():
    geometry = Geometry.of((8, 8))
    with pytest.raises(ValueError, match="mode is 'bilinear' or 'nearest', not 'cubic'"):
        replay(torch.ones(1, 2, 2), geometry, (4, 4), mode='cubic')
    with pytest.raises(ValueError, match=r"maps of torch.int64 can be read with mode='nearest'"):
        replay(torch.ones(1, 2, 2, dtype=torch.long), geometry, (4, 4))
    with pytest.raises(ValueError, match='this matrix does more'):
        geometry.then([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]], (8, 8))
