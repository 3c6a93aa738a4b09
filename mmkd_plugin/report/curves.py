"""Curves: line plots as SVG that takes its colour of text from the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Readable on white and on black.
COLORS = ('#3b82c4', '#d9772b', '#3f9e57', '#b25bb5', '#c2453f', '#8a8f30', '#4aa3a3', '#8c7462')

#: Stands for the colour of the page's text until the SVG is written.
TEXT = '#010203'

SETTINGS = {
    'axes.edgecolor': TEXT,
    'axes.labelcolor': TEXT,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 9,
    'legend.fontsize': 8,
    'svg.fonttype': 'none',
    'text.color': TEXT,
    'xtick.color': TEXT,
    'ytick.color': TEXT,
}

_NAMES = re.compile(r' id="[A-Za-z0-9.]+_\d+"')


@dataclass
class Plot:
    """Some curves over the iterations.

    Args:
        title (str): Its title.
        curves (dict[str, tuple[Sequence[int], Sequence[float]]]): Iterations and values by name.
        levels (dict[str, float]): Horizontal lines by name.
        log (bool): Whether values of different sizes are shown on a logarithmic scale.
    """

    title: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    levels: Mapping[str, float] = field(default_factory=dict)
    log: bool = False


def svg(plot: Plot) -> str:
    """Draws a plot.

    Args:
        plot (Plot): The plot.

    Returns:
        str: An ``svg`` element, without a size of its own.
    """
    with mpl.rc_context({**SETTINGS, 'svg.hashsalt': plot.title}):
        figure = Figure(figsize=(5.4, 2.9), layout='constrained')
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for number, (name, (iterations, values)) in enumerate(plot.curves.items()):
            few = dict(marker='o', markersize=3) if len(values) < 12 else {}
            axes.plot(
                iterations,
                values,
                color=COLORS[number % len(COLORS)],
                linewidth=1.5,
                label=name,
                **few,
            )
        for number, (name, value) in enumerate(plot.levels.items()):
            style = ('--', ':')[number % 2]
            axes.axhline(value, color=TEXT, linestyle=style, linewidth=1, label=name)
        if plot.log and _spans_decades(plot):
            axes.set_yscale('log')
        axes.set_xlabel('iteration')
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color='#80808040', linewidth=0.6)
        if len(plot.curves) + len(plot.levels) > 1:
            axes.legend(frameon=False)
        text = StringIO()
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    found = text.getvalue()
    found = found[found.index('<svg') :].replace(TEXT, 'currentColor')
    found = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', found, count=1)
    found = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', found, count=1)
    found = re.sub(r' <metadata>.*?</metadata>\n', '', found, count=1, flags=re.DOTALL)
    return _NAMES.sub('', found)


def _spans_decades(plot: Plot) -> bool:
    """Whether all values are positive, and the largest is ten times the smallest."""
    values = [value for _, values in plot.curves.values() for value in values]
    return 0 < 10 * min(values) <= max(values)
