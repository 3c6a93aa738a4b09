"""The plots of a report."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.report import Report

#: Colours that people with colour-blindness can tell apart, and markers.
STYLES = {
    'textbook': ('#999999', 's'),
    'MMRazor': ('#D55E00', 'D'),
    'ours': ('#0072B2', 'o'),
    'ours, compiled': ('#009E73', '^'),
}


def draw(report: Report, path: Path) -> None:
    """Writes the plot of a report as a PNG."""
    figure = dict(losses=_losses, step=_steps)[report.command](report)
    figure.savefig(path, dpi=110, bbox_inches='tight', facecolor='white')
    plt.close(figure)


def _losses(report: Report) -> plt.Figure:
    """Each form of each loss, in multiples of its floor."""
    count = len(report.rounds)
    figure, axes = plt.subplots(figsize=(8.5, 1 + 0.27 * count))
    for row, one in enumerate(report.rounds):
        axes.axhline(row, color='0.93', zorder=0)
        for name, (colour, marker) in STYLES.items():
            ratio = one.ratio(name, 'floor')
            if ratio:
                axes.plot([ratio.low, ratio.high], [row, row], color=colour, lw=1.5, alpha=0.6)
                axes.plot(ratio.median, row, marker, color=colour, ms=5.5)
    axes.axvline(1, color='black', lw=1)
    names = [f'{one.group}, {one.case}' for one in report.rounds]
    axes.set_yticks(range(count), names, fontsize=8)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}×'))
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel(
        'forward and backward, times one read of the inputs and one write of the gradient'
    )
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, ls='', label=name)
        for name, (colour, marker) in STYLES.items()
    ]
    axes.legend(handles=handles, loc='lower center', bbox_to_anchor=(0.5, 1), ncol=4, frameon=False)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis='y', length=0)
    return figure


def _steps(report: Report) -> plt.Figure:
    """Steps in multiples of the plain student's."""
    figure, panels = plt.subplots(
        1, len(report.rounds), figsize=(4.6 * len(report.rounds), 2.6), squeeze=False
    )
    for axes, one in zip(panels[0], report.rounds):
        names = [name for name in one.seconds if one.ratio(name, 'student')]
        ratios = np.array([one.ratio(name, 'student') for name in names])
        colours = ['#0072B2' if name.startswith('ours') else '0.7' for name in names]
        whiskers = [ratios[:, 0] - ratios[:, 1], ratios[:, 2] - ratios[:, 0]]
        axes.barh(names, ratios[:, 0], color=colours, xerr=whiskers, error_kw=dict(lw=1))
        for row, ratio in enumerate(ratios):
            axes.text(ratio[2] + 0.03, row, f'{ratio[0]:.2f}×', va='center', fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, ratios[:, 2].max() * 1.2)
        axes.set_title(f'{one.group}, {one.case}', fontsize=10)
        axes.set_xlabel("time of a step, times the plain student's")
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    return figure
