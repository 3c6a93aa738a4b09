"""Grids: everything is drawn, whatever the size of the image, and labels can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mmkd_plugin.visualization.figure import (
    DASHED,
    Box,
    Cell,
    Grid,
    Scale,
    draw,
    faded,
    figure_of,
    save,
)


def image(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grid(width: int = 40, height: int = 30, **changes) -> Grid:
    heat = np.arange(12.0).reshape(3, 4)
    line = [Cell(image(width, height), caption='7 boxes'), Cell(heat=heat), None]
    settings = dict(
        size=(width, height),
        columns=['prediction', 'neck[0]', 'against teacher'],
        rows=[('teacher', line), ('student', list(line))],
        side=[Cell(image(width, height), caption='image')],
        scales=[None, Scale.of([heat], '× its mean'), None],
        legend=[[('class a', (1.0, 0.0, 0.0)), ('missed' + DASHED, 'blue')], [('wrong', 'red')]],
    )
    return Grid(**{**settings, **changes})


def drawn(grid: Grid) -> tuple[Figure, Any]:
    figure = figure_of(grid)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas.get_renderer()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_titles_rows_captions_scales_and_legend_are_written():
    found = texts(figure_of(grid()))
    wanted = ['teacher', 'student', 'prediction', 'neck[0]', 'against teacher', '7 boxes', 'image']
    for text in [*wanted, '× its mean', '0', '11', 'class a', 'missed', 'wrong']:
        assert text in found


@pytest.mark.parametrize('size', [(1, 300), (400, 30), (64, 64)])
def test_no_text_overlaps_another_or_leaves_the_picture(size: tuple[int, int]) -> None:
    figure, renderer = drawn(grid(*size))
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    ]
    width, height = figure.get_size_inches() * figure.dpi
    for number, (name, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, name
        for other, its in boxes[number + 1 :]:
            assert not box.overlaps(its), (name, other)


@pytest.mark.parametrize('size', [(1, 1), (3, 500), (500, 3), (127, 65), (2048, 1024)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    pixels = draw(grid(*size))
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert min(pixels.shape[:2]) > 100 and max(pixels.shape[:2]) < 4000
    assert len(np.unique(pixels[::3, ::3, 0])) > 20


def test_a_map_keeps_its_values_and_its_place():
    """Each position of a map is a block of its colour, cut off where the input was padded."""
    heat = np.array([[0.0, 1.0], [2.0, 3.0]])
    one = Grid((20, 10), ['map'], [('student', [Cell(heat=heat, covers=(40, 20))])])
    one.scales = [Scale(0, 3, '')]
    figure, pixels = figure_of(one), draw(one)
    box = figure.axes[0].bbox
    left, top = round(box.x0), round(figure.bbox.height - box.y1)
    w, h = round(box.width), round(box.height)
    inside = pixels[top + 5 : top + h - 5, left + 5 : left + w - 5]
    expected = np.array(colormaps['viridis'](0.0)[:3]) * 255  # the upper left quarter alone
    assert np.abs(inside - expected).max() < 3


def test_labels_of_boxes_stay_inside():
    boxes = [Box((95, 1, 99, 9), 'traffic light 0.99'), Box((0, 40, 30, 49), 'car', dashed=True)]
    one = Grid((100, 50), ['prediction'], [('student', [Cell(image(100, 50), boxes=boxes)])])
    figure, renderer = drawn(one)
    axes = figure.axes[0]
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        assert axes.bbox.x0 - 3 <= extent.x0 and extent.x1 <= axes.bbox.x1 + 3, text.get_text()
    assert len(axes.patches) == 4  # a halo for each


@pytest.mark.parametrize(
    'maps, percentile, expected',
    [
        ([[1.0, 4.0], [2.0]], 100, (0, 4, False)),
        ([np.arange(101)], 90, (0, 90, True)),
        ([np.zeros(3)], 100, (0, 1, False)),
        ([[0.0] * 99 + [5.0]], 50, (0, 5, False)),
        ([[np.nan, 2.0]], 100, (0, 2, False)),
    ],
)
def test_scale(maps: list, percentile: float, expected: tuple) -> None:
    scale = Scale.of([np.asarray(m) for m in maps], '', percentile)
    assert (scale.low, scale.high, scale.clips) == expected


def test_weak_values_are_seen_on_a_scale_that_is_not_even():
    norm = Scale(0, 100, '', gamma=0.5).norm
    assert norm(25) == pytest.approx(0.5) and norm(400) == 1


def test_a_faded_image_is_light_and_keeps_what_it_shows():
    dark = np.zeros((8, 8, 3), np.uint8)
    dark[2:4] = 20
    ground = faded(dark)
    assert ground.min() >= 170 and ground[3, 0, 0] > ground[0, 0, 0] + 50
    assert faded(np.full((1, 1, 3), 9, np.uint8)).min() >= 170


def test_files(tmp_path: Path) -> None:
    pixels = image(300, 90)
    assert save(pixels, tmp_path / 'a.png') == (300, 90)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'a.png')), pixels)
    assert save(pixels, tmp_path / 'a.jpg', 100) == (100, 30)
    assert save(pixels, tmp_path / 'b.jpg', 400) == (300, 90)
