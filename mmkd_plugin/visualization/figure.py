"""Grid: pictures side by side, a row for each model, with one colour scale for each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DPI = 100
FONT = 11  # points; 15 pixels
LINE = 21  # pixels for a line of text
CHAR = 8.6  # pixels, a generous mean width of a character
GAP = 12
DASHED = ' (dashed)'  # at the end of a name in the legend
SIDES = (256, 640)  # pixels, the least and the largest side of a picture
WITH_BOXES = 384  # the least side where labels of boxes have to be read
MAP_COLORS = 'viridis'
HEAT_COLORS = 'inferno_r'  # dark where there is much, on a light ground

Color = str | Sequence[float]


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Args:
        corners (Sequence[float]): x1, y1, x2, y2 in pixels of the image.
        label (str): Text at its upper left corner. Defaults to ``''``.
        color (Color): Of line and label. Defaults to ``'tab:blue'``.
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
        heat (np.ndarray, optional): ``(h, w)``, painted in the colours of its column; translucent
            where there is an image. Defaults to None.
        covers (tuple[float, float], optional): Width and height that the map covers, in pixels of
            the image; more than the image's where the input was padded. Defaults to None: the
            image's.
        boxes (Sequence[Box]): Drawn on top. Defaults to ``()``.
        caption (str): A line beneath. Defaults to ``''``.
    """

    image: np.ndarray | None = None
    heat: np.ndarray | None = None
    covers: tuple[float, float] | None = None
    boxes: Sequence[Box] = ()
    caption: str = ''


@dataclass(frozen=True)
class Scale:
    """The colour scale that all maps of a column share.

    Args:
        low (float): Where it starts.
        high (float): Where it ends; larger values have the last colour.
        label (str): What is measured.
        clips (bool): Whether there are larger values. Defaults to False.
        gamma (float): Colours go with this power of the value; below 1 shows weak values too.
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
        """From 0 to the largest value, or to a percentile of all values."""
        values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
        values = values[np.isfinite(values)]
        largest = float(values.max()) if values.size else 0.0
        high = float(np.percentile(values, percentile)) if values.size else 0.0
        high = high if high > 0 else largest
        return cls(0.0, high if high > 0 else 1.0, label, largest > high > 0, gamma)

    @property
    def norm(self) -> Normalize:
        """What matplotlib makes of it."""
        if self.gamma == 1:
            return Normalize(self.low, self.high)
        return PowerNorm(self.gamma, self.low, self.high, clip=True)


@dataclass
class Grid:
    """Pictures of one image, a row for each model.

    Args:
        size (tuple[int, int]): Width and height of the image, pixels.
        columns (list[str]): Their titles.
        rows (list[tuple[str, list[Cell | None]]]): A name and a cell for each column.
        side (list[Cell]): What the rows are compared with: the image, its ground truth.
        scales (list[Scale | None]): One for each column. Defaults to none.
        legend (list[list[tuple[str, Color]]]): Names of colours, each list on lines of its own.
            Defaults to none.
    """

    size: tuple[int, int]
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    side: list[Cell] = field(default_factory=list)
    scales: list[Scale | None] = field(default_factory=list)
    legend: list[list[tuple[str, Color]]] = field(default_factory=list)


def draw(grid: Grid) -> np.ndarray:
    """Draws a grid.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8 RGB.
    """
    figure = _Layout(grid).figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(pixels: np.ndarray, file: Path, width: int | None = None) -> tuple[int, int]:
    """Writes a picture, made smaller to ``width`` pixels if it is wider; returns width, height."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if width is not None and image.width > width:
        height = max(round(image.height * width / image.width), 1)
        image = image.resize((width, height), Image.LANCZOS)
    image.save(file, quality=85)  # of a JPEG; a PNG has none
    return image.size


def faded(image: np.ndarray) -> np.ndarray:
    """A light grey version of an image, as a ground for colours: ``(H, W, 3)``, uint8."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = np.percentile(grey, (1, 99))
    light = 175 + 75 * ((grey - low) / max(high - low, 1)).clip(0, 1)
    return np.repeat(light[..., None], 3, 2).astype(np.uint8)


class _Layout:
    """Where everything goes, in pixels from the upper left corner."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        width, height = grid.size
        low, high = SIDES
        if any(cell and cell.boxes for _, cells in grid.rows for cell in cells):
            low = WITH_BOXES
        factor = min(max(low / min(width, height), 1.0), high / max(width, height))
        self.cell = max(width * factor, 1.0), max(height * factor, 1.0)
        words = [*grid.columns, *(s.label for s in grid.scales if s)]
        words += [c.caption for _, cells in grid.rows for c in cells if c]
        self.column = max(self.cell[0], CHAR * max(map(len, words), default=0))
        self.side = 0.0
        if grid.side:
            self.side = max(self.cell[0], CHAR * max(len(c.caption) for c in grid.side)) + GAP
        self.labels = CHAR * 1.15 * max(len(name) for name, _ in grid.rows) + GAP
        captions = any(cell and cell.caption for _, cells in grid.rows for cell in cells)
        self.row = max(self.cell[1], 2 * LINE) + LINE * (captions or bool(grid.side)) + GAP
        self.count = max(len(grid.rows), len(grid.side))
        self.top = GAP + LINE
        self.bars = 10 + 2.2 * LINE if any(grid.scales) else 0
        self.width = GAP + self.side + self.labels + len(grid.columns) * (self.column + GAP)
        self.lines = [line for group in grid.legend for line in self._wrapped(group)]
        self.legend = len(self.lines) * LINE + (GAP if self.lines else 0)
        self.height = self.top + self.count * self.row + self.bars + self.legend

    def figure(self) -> Figure:
        grid = self.grid
        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor='white')
        for number, cell in enumerate(grid.side):
            self._cell(figure, cell, GAP + (self.side - GAP - self.cell[0]) / 2, number, None)
        left = GAP + self.side + self.labels
        for number, title in enumerate(grid.columns):
            x = left + number * (self.column + GAP)
            self._text(figure, x + self.column / 2, GAP + LINE / 2, title, weight='bold')
            scale = grid.scales[number] if grid.scales else None
            for row, (_, cells) in enumerate(grid.rows):
                if cells[number] is not None:
                    inset = (self.column - self.cell[0]) / 2
                    self._cell(figure, cells[number], x + inset, row, scale)
            if scale is not None:
                self._bar(figure, x, scale, any(c[number] and c[number].image is not None
                                                for _, c in grid.rows))  # fmt: skip
        for row, (name, _) in enumerate(grid.rows):
            y = self.top + row * self.row + self.cell[1] / 2
            self._text(figure, left - GAP, y, name, ha='right', weight='bold')
        for number, line in enumerate(self.lines):
            self._legend(figure, line, self.height - (len(self.lines) - number) * LINE)
        return figure

    def _wrapped(self, names: Sequence[tuple[str, Color]]) -> list[list[tuple[str, Color]]]:
        """The lines that names of colours take."""
        lines: list[list[tuple[str, Color]]] = [[]] if names else []
        for name, color in names:
            if lines[-1] and sum(_width(n) for n, _ in lines[-1]) + _width(name) > self.width:
                lines.append([])
            lines[-1].append((name, color))
        return lines

    def _legend(self, figure: Figure, line: Sequence[tuple[str, Color]], y: float) -> None:
        x = max((self.width - sum(_width(name) for name, _ in line)) / 2, 4)
        for name, color in line:
            axes = self._axes(figure, x, y + 4, 22, LINE - 9)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
            if name.endswith(DASHED):
                axes.axis('off')
                axes.plot([0, 1], [0.5, 0.5], color=color, linewidth=2.2, linestyle=(0, (2, 1)))
            else:
                axes.set_facecolor(color)
                for spine in axes.spines.values():
                    spine.set(color='0.5', linewidth=0.6)
            text = name[: -len(DASHED)] if name.endswith(DASHED) else name
            self._text(figure, x + 28, y + LINE / 2, text, ha='left')
            x += _width(name)

    def _text(self, figure: Figure, x: float, y: float, text: str, **kwargs: Any) -> None:
        style = {'ha': 'center', 'va': 'center', 'fontsize': FONT, **kwargs}
        figure.text(x / self.width, 1 - y / self.height, text, **style)

    def _axes(self, figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
        bottom = 1 - (y + height) / self.height
        return figure.add_axes((x / self.width, bottom, width / self.width, height / self.height))

    def _cell(self, figure: Figure, cell: Cell, x: float, row: int, scale: Scale | None) -> None:
        width, height = self.grid.size
        y = self.top + row * self.row
        axes = self._axes(figure, x, y, *self.cell)
        if cell.image is not None:
            # Averaged where it gets smaller; where it gets larger, the pixels that there are.
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
            _box(axes, box, width, width / self.cell[0])
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect='auto')
        for spine in axes.spines.values():
            spine.set(color='0.6', linewidth=0.8)
        if cell.caption:
            middle = x + self.cell[0] / 2
            self._text(figure, middle, y + self.cell[1] + LINE / 2, cell.caption)

    def _bar(self, figure: Figure, x: float, scale: Scale, on_image: bool) -> None:
        y = self.top + self.count * self.row
        axes = self._axes(figure, x + self.column * 0.08, y, self.column * 0.84, 10)
        colors = ScalarMappable(scale.norm, HEAT_COLORS if on_image else MAP_COLORS)
        bar = figure.colorbar(
            colors, cax=axes, orientation='horizontal', extend='max' if scale.clips else 'neither'
        )
        ticks = [scale.low, scale.high]
        if scale.gamma != 1:  # one in the middle of the colours shows that they are not even
            ticks.insert(1, scale.low + 0.5 ** (1 / scale.gamma) * (scale.high - scale.low))
        bar.set_ticks(ticks, labels=[f'{v:.3g}' for v in ticks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=FONT, length=3, pad=2)
        self._text(figure, x + self.column / 2, y + 10 + LINE * 1.45, scale.label)


def _width(name: str) -> float:
    """Pixels that a name takes in the legend, with its colour."""
    return CHAR * len(name) + 46


def _box(axes: Axes, box: Box, width: float, pixel: float) -> None:
    x1, y1, x2, y2 = box.corners
    style = '--' if box.dashed else '-'
    for line, color in ((3.4, 'white'), (1.8, box.color)):  # a halo, to be seen on any ground
        axes.add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=line,
                linestyle=style if color != 'white' else '-', alpha=0.5 if color == 'white' else 1,
            )
        )  # fmt: skip
    if box.label:
        room = y1 > 17 * pixel
        axes.text(
            max(min(x1, width - (0.85 * CHAR * len(box.label) + 4) * pixel), 0),  # not cut off
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
