"""The plots of a report."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.report import Report
from benchmarks.scaling import sweeps
from mmkd_plugin.saving import replacing

#: Colours that people with colour-blindness can tell apart, and markers.
STYLES = {
    'textbook': ('#999999', 's'),
    'MMRazor': ('#D55E00', 'D'),
    'ours': ('#0072B2', 'o'),
    'ours, compiled': ('#009E73', '^'),
}


def draw(report: Report, path: Path) -> None:
    """Writes the plot of a report as a PNG."""
    draws = dict(losses=_losses, step=_steps, epoch=_steps, memory=_memory, scaling=_scaling)
    figure = draws[report.command](report)
    with replacing(path) as (beside,):
        figure.savefig(beside, format='png', dpi=110, bbox_inches='tight', facecolor='white')
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
    _rows(axes, [f'{one.group}, {one.case}' for one in report.rounds])
    axes.set_xlabel('forward and backward, in units of the floor')
    return figure


def _rows(axes: plt.Axes, names: list[str]) -> None:
    """One row for each case, a logarithmic scale of multiples, and the forms as a legend."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}×'))
    axes.set_ylim(len(names) - 0.5, -0.5)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, ls='', label=name)
        for name, (colour, marker) in STYLES.items()
    ]
    axes.legend(handles=handles, loc='lower center', bbox_to_anchor=(0.5, 1), ncol=4, frameon=False)
    _open(axes)
    axes.spines['left'].set_visible(False)
    axes.tick_params(axis='y', length=0)


def _steps(report: Report) -> plt.Figure:
    """Steps in multiples of the plain student's."""
    figure, panels = plt.subplots(
        1, len(report.rounds), figsize=(4.6 * len(report.rounds), 2.6), squeeze=False
    )
    what = 'an epoch' if report.command == 'epoch' else 'a step'
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
        axes.set_title(f'{one.group},\n{one.case}', fontsize=10)
        axes.set_xlabel(f"time of {what}, times the plain student's")
        _open(axes)
    figure.tight_layout()
    return figure


def _memory(report: Report) -> plt.Figure:
    """The peak of each form of each loss, in multiples of its inputs and one map."""
    found = [one for one in report.footprints if not one.parts]
    figure, axes = plt.subplots(figsize=(8.5, 1 + 0.27 * len(found)))
    for row, one in enumerate(found):
        axes.axhline(row, color='0.93', zorder=0)
        for name, (colour, marker) in STYLES.items():
            if name in one.peak:
                axes.plot(one.peak[name] / one.allowed, row, marker, color=colour, ms=5.5)
    axes.axvline(1, color='black', lw=1)
    _rows(axes, [f'{one.group}, {one.case}' for one in found])
    axes.set_xlabel('peak beside the inputs, in units of the inputs and one map')
    return figure


#: Colours of what is varied.
AXIS_STYLES = dict(
    positions='#0072B2', batch='#E69F00', channels='#009E73', classes='#CC79A7', boxes='#56B4E9'
)


def _scaling(report: Report) -> plt.Figure:
    """A panel for each loss: how many times as long for how many times as much."""
    losses = sweeps(report.points)
    columns = min(5, len(losses))
    rows = -(-len(losses) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.5 * columns, 2.1 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes in panels.flat:
        axes.set_visible(False)
    for axes, (loss, found) in zip(panels.flat, losses.items()):
        axes.set_visible(True)
        for axis, points in found.items():
            base = next(point for point in points if point['factor'] == 1)
            x = [point['value'] / base['value'] for point in points]
            y = [point['seconds'] / base['seconds'] for point in points]
            axes.plot(x, y, 'o-', color=AXIS_STYLES[axis], ms=3, lw=1.2)
        ends = [min(point['factor'] for point in report.points)]
        ends.append(max(point['factor'] for point in report.points))
        axes.plot(ends, ends, '--', color='0.6', lw=1, zorder=0)
        axes.set_xscale('log', base=2)
        axes.set_yscale('log', base=2)
        for one in (axes.xaxis, axes.yaxis):
            one.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}×'))
        axes.set_title(loss.replace('Loss', 'Loss\n', 1).strip(), fontsize=8)
        axes.tick_params(labelsize=7)
        _open(axes)
    handles = [
        plt.Line2D([], [], color=colour, marker='o', ms=4, label=axis)
        for axis, colour in AXIS_STYLES.items()
    ]
    handles.append(plt.Line2D([], [], color='0.6', ls='--', label='in proportion'))
    figure.legend(handles=handles, loc='upper center', ncol=6, frameon=False, fontsize=9)
    figure.supylabel('time', fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


def _open(axes: plt.Axes) -> None:
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
