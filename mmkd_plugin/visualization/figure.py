"""Grids: pictures in a row for each model, with one colour scale for each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmkd_plugin.saving import replacing

DPI = 100
FONT = 11  # points, which are 15 pixels
LINE = 21  # pixels, height of a line of text
CHAR = 8.6  # pixels, a generous mean width of a character
GAP = 12  # pixels between two parts
DASHED = ' (dashed)'  # end of a name in the legend whose line is dashed
SIDES = (256, 640)  # pixels, the least and the largest side of a picture
WITH_BOXES = 384  # pixels, the least side of a picture with labels of boxes
MAP_COLORS = 'viridis'
HEAT_COLORS = 'inferno_r'  # on a light background, dark for large values

Color = str | Sequence[float]


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Args:
        corners (Sequence[float]): x1, y1, x2, y2 in pixels of the image.
        label (str): Text at the upper left corner. Defaults to ``''``.
        color (Color): Colour of the line and the label. Defaults to ``'tab:blue'``.
        dashed (bool): Whether the line is dashed. Defaults to False.
    """

    corners: Sequence[float]
    label: str = ''
    color: Color = 'tab:blue'
    dashed: bool = False


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: an image, a map, or a map on an image.

    Args:
        image (np.ndarray, optional): ``(H, W, 3)``, uint8 RGB. Defaults to None.
        heat (np.ndarray, optional): Map ``(h, w)``, painted in the colours of its column, and
            translucent on an image. Defaults to None.
        covers (tuple[float, float], optional): Width and height that the map covers, in pixels of
            the image; larger than the image if the input was padded. Defaults to None: the size of
            the image.
        boxes (Sequence[Box]): Boxes on top. Defaults to ``()``.
        caption (str): A line of text below. Defaults to ``''``.
    """

    image: np.ndarray | None = None
    heat: np.ndarray | None = None
    covers: tuple[float, float] | None = None
    boxes: Sequence[Box] = ()
    caption: str = ''


@dataclass(frozen=True)
class Scale:
    """The common colour scale of all maps of a column.

    Args:
        low (float): The value of the first colour.
        high (float): The value of the last colour, which larger values have too.
        label (str): Name of the measured quantity.
        clips (bool): Whether there are larger values. Defaults to False.
        gamma (float): Exponent from values to colours; below 1, weak values become visible.
            Defaults to 1.
    """

    low: float
    high: float
    label: str
    clips: bool = False
    gamma: float = 1.0

    @classmethod
    def of(
        cls, maps: Sequence[np.ndarray], label: str, percentile: float = 100, gamma: float = 1.0
    ) -> Scale:
        """The scale from 0 to the largest value of some maps, or to a percentile of their values.

        Args:
            maps (Sequence[np.ndarray]): The maps; values that are not finite are left out.
            label (str): Name of the measured quantity.
            percentile (float): Percentile of the last colour. Defaults to 100.
            gamma (float): Exponent from values to colours. Defaults to 1.
        """
        values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
        values = values[np.isfinite(values)]
        largest = float(values.max()) if values.size else 0.0
        high = float(np.percentile(values, percentile)) if values.size else 0.0
        high = high if high > 0 else largest
        return cls(0.0, high if high > 0 else 1.0, label, largest > high > 0, gamma)

    @property
    def norm(self) -> Normalize:
        """The scale in matplotlib's form."""
        if self.gamma == 1:
            return Normalize(self.low, self.high)
        return PowerNorm(self.gamma, self.low, self.high, clip=True)


@dataclass
class Grid:
    """Pictures of one image, with a row for each model.

    Args:
        size (tuple[int, int]): Width and height of the image, pixels.
        columns (list[str]): Titles of the columns.
        rows (list[tuple[str, list[Cell | None]]]): For each model its name, and a cell for each
            column.
        side (list[Cell]): Pictures beside the rows: the image, its ground truth. Defaults to an
            empty list.
        scales (list[Scale | None]): A scale for each column. Defaults to an empty list.
        legend (list[list[tuple[str, Color]]]): Names of colours; each list starts a new line.
            Defaults to an empty list.
    """

    size: tuple[int, int]
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    side: list[Cell] = field(default_factory=list)
    scales: list[Scale | None] = field(default_factory=list)
    legend: list[list[tuple[str, Color]]] = field(default_factory=list)


def draw(grid: Grid) -> np.ndarray:
    """Draws a grid.

    Args:
        grid (Grid): The grid.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8 RGB.
    """
    canvas = FigureCanvasAgg(figure_of(grid))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def figure_of(grid: Grid) -> Figure:
    """Draws a grid on a figure of matplotlib.

    Args:
        grid (Grid): The grid.
    """
    return _Drawing(grid).draw()


def save(pixels: np.ndarray, file: Path, width: int | None = None) -> tuple[int, int]:
    """Writes a picture to a file.

    Args:
        pixels (np.ndarray): ``(H, W, 3)``, uint8 RGB.
        file (Path): The file; its suffix decides the format.
        width (int, optional): Largest width in pixels; a wider picture is reduced. Defaults to
            None: any width.

    Returns:
        tuple[int, int]: Width and height of the written picture, pixels.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    if width is not None and image.width > width:
        height = max(round(image.height * width / image.width), 1)
        image = image.resize((width, height), Image.LANCZOS)
    kind = Image.registered_extensions()[file.suffix.lower()]
    content = BytesIO()  # PIL says nothing of a disk that is full
    image.save(content, kind, quality=85)  # a PNG ignores the quality
    with replacing(file) as (beside,):
        beside.write_bytes(content.getbuffer())
    return image.size


def faded(image: np.ndarray) -> np.ndarray:
    """A light grey version of an image, as a background of colours.

    Args:
        image (np.ndarray): ``(H, W, 3)``, uint8 RGB.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8.
    """
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = np.percentile(grey, (1, 99))
    light = 175 + 75 * ((grey - low) / max(high - low, 1)).clip(0, 1)
    return np.repeat(light[..., None], 3, 2).astype(np.uint8)


class _Layout:
    """The sizes and places of the parts of a grid, in pixels from the upper left corner."""

    def __init__(self, grid: Grid) -> None:
        width, height = grid.size
        cells = [cell for _, line in grid.rows for cell in line if cell is not None]
        low, high = SIDES
        if any(cell.boxes for cell in cells):
            low = WITH_BOXES
        factor = min(max(low / min(width, height), 1.0), high / max(width, height))
        self.cell = max(width * factor, 1.0), max(height * factor, 1.0)
        texts = [*grid.columns, *(scale.label for scale in grid.scales if scale)]
        texts += [cell.caption for cell in cells]
        self.column = max(self.cell[0], CHAR * max(map(len, texts), default=0))
        self.side = 0.0
        if grid.side:
            self.side = max(self.cell[0], CHAR * max(len(c.caption) for c in grid.side)) + GAP
        self.labels = CHAR * 1.15 * max(len(name) for name, _ in grid.rows) + GAP
        captions = any(cell.caption for cell in cells) or bool(grid.side)
        self.row = max(self.cell[1], 2 * LINE) + LINE * captions + GAP
        self.top = GAP + LINE
        self.left = GAP + self.side + self.labels
        self.bars = self.top + max(len(grid.rows), len(grid.side)) * self.row
        self.width = self.left + len(grid.columns) * (self.column + GAP)
        self.legend = [line for names in grid.legend for line in self._lines(names)]
        self.height = self.bars + (10 + 2.2 * LINE if any(grid.scales) else 0)
        self.height += len(self.legend) * LINE + (GAP if self.legend else 0)

    def _lines(self, names: Sequence[tuple[str, Color]]) -> list[list[tuple[str, Color]]]:
        """Breaks names of colours into lines."""
        lines: list[list[tuple[str, Color]]] = [[]] if names else []
        for name, color in names:
            if lines[-1] and sum(_width(n) for n, _ in lines[-1]) + _width(name) > self.width:
                lines.append([])
            lines[-1].append((name, color))
        return lines


class _Drawing:
    """Draws a grid on a figure; lengths are in pixels from the upper left corner."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.layout = _Layout(grid)
        size = self.layout.width / DPI, self.layout.height / DPI
        self.figure = Figure(figsize=size, dpi=DPI, facecolor='white')

    def draw(self) -> Figure:
        grid, layout = self.grid, self.layout
        for number, cell in enumerate(grid.side):
            self._cell(cell, GAP + (layout.side - GAP - layout.cell[0]) / 2, number, None)
        for number, title in enumerate(grid.columns):
            x = layout.left + number * (layout.column + GAP)
            self._text(x + layout.column / 2, GAP + LINE / 2, title, weight='bold')
            scale = grid.scales[number] if grid.scales else None
            cells = [line[number] for _, line in grid.rows]
            for row, cell in enumerate(cells):
                if cell is not None:
                    self._cell(cell, x + (layout.column - layout.cell[0]) / 2, row, scale)
            if scale is not None:
                self._bar(x, scale, any(cell and cell.image is not None for cell in cells))
        for row, (name, _) in enumerate(grid.rows):
            y = layout.top + row * layout.row + layout.cell[1] / 2
            self._text(layout.left - GAP, y, name, ha='right', weight='bold')
        for number, line in enumerate(layout.legend):
            self._legend(line, layout.height - (len(layout.legend) - number) * LINE)
        return self.figure

    def _legend(self, line: Sequence[tuple[str, Color]], y: float) -> None:
        x = max((self.layout.width - sum(_width(name) for name, _ in line)) / 2, 4)
        for name, color in line:
            axes = self._axes(x, y + 4, 22, LINE - 9)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
            if name.endswith(DASHED):
                axes.axis('off')
                axes.plot([0, 1], [0.5, 0.5], color=color, linewidth=2.2, linestyle=(0, (2, 1)))
            else:
                axes.set_facecolor(color)
                for spine in axes.spines.values():
                    spine.set(color='0.5', linewidth=0.6)
            text = name[: -len(DASHED)] if name.endswith(DASHED) else name
            self._text(x + 28, y + LINE / 2, text, ha='left')
            x += _width(name)

    def _text(self, x: float, y: float, text: str, **kwargs: Any) -> None:
        style = {'ha': 'center', 'va': 'center', 'fontsize': FONT, **kwargs}
        self.figure.text(x / self.layout.width, 1 - y / self.layout.height, text, **style)

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        all_width, all_height = self.layout.width, self.layout.height
        bottom = 1 - (y + height) / all_height
        return self.figure.add_axes((x / all_width, bottom, width / all_width, height / all_height))

    def _cell(self, cell: Cell, x: float, row: int, scale: Scale | None) -> None:
        width, height = self.grid.size
        layout = self.layout
        y = layout.top + row * layout.row
        axes = self._axes(x, y, *layout.cell)
        if cell.image is not None:
            # A smaller picture averages the pixels of the image, a larger one repeats them.
            axes.imshow(cell.image, extent=(0, width, height, 0), interpolation='antialiased')
        if cell.heat is not None:
            w, h = cell.covers or (width, height)
            on_image = cell.image is not None
            scale = scale or Scale.of([cell.heat], '')
            heat = np.asarray(cell.heat, np.float64)
            axes.imshow(
                heat,
                extent=(0, w, h, 0),
                cmap=HEAT_COLORS if on_image else MAP_COLORS,
                norm=scale.norm,
                alpha=0.9 * np.clip(heat / scale.high, 0, 1) ** 0.5 if on_image else None,
                interpolation='antialiased',
            )
        for box in cell.boxes:
            _draw_box(axes, box, width, width / layout.cell[0])
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect='auto')
        for spine in axes.spines.values():
            spine.set(color='0.6', linewidth=0.8)
        if cell.caption:
            self._text(x + layout.cell[0] / 2, y + layout.cell[1] + LINE / 2, cell.caption)

    def _bar(self, x: float, scale: Scale, on_image: bool) -> None:
        column, y = self.layout.column, self.layout.bars
        axes = self._axes(x + column * 0.08, y, column * 0.84, 10)
        colors = ScalarMappable(scale.norm, HEAT_COLORS if on_image else MAP_COLORS)
        bar = self.figure.colorbar(
            colors, cax=axes, orientation='horizontal', extend='max' if scale.clips else 'neither'
        )
        ticks = [scale.low, scale.high]
        if scale.gamma != 1:  # a tick in the middle of the colours shows that they are not even
            ticks.insert(1, scale.low + 0.5 ** (1 / scale.gamma) * (scale.high - scale.low))
        bar.set_ticks(ticks, labels=[f'{v:.3g}' for v in ticks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=FONT, length=3, pad=2)
        self._text(x + column / 2, y + 10 + LINE * 1.45, scale.label)


def _width(name: str) -> float:
    """Pixels of a name in the legend, with its colour."""
    return CHAR * len(name) + 46


def _draw_box(axes: Axes, box: Box, width: float, pixel: float) -> None:
    """Draws a box on an image of a width; a pixel of the picture is ``pixel`` of the image."""
    x1, y1, x2, y2 = box.corners
    halo = dict(edgecolor='white', linewidth=3.4, alpha=0.5)  # makes the line visible on any image
    line = dict(edgecolor=box.color, linewidth=1.8, linestyle='--' if box.dashed else '-')
    for style in (halo, line):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))
    if box.label:
        room = y1 > 17 * pixel
        axes.text(
            max(min(x1, width - (0.85 * CHAR * len(box.label) + 4) * pixel), 0),  # inside the image
            y1,
            box.label,
            fontsize=FONT - 2,
            color='black' if _luminance(box.color) > 0.6 else 'white',
            va='bottom' if room else 'top',
            bbox=dict(facecolor=box.color, edgecolor='none', pad=1.2),
            clip_on=True,
        )


def _luminance(color: Color) -> float:
    return float(np.dot(to_rgb(color), (0.299, 0.587, 0.114)))
