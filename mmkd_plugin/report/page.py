"""The page of a report: one HTML file that holds all that it shows."""

from __future__ import annotations

import base64
import itertools
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from mmkd_plugin.cli import UsageError
from mmkd_plugin.pages import definitions, document, table
from mmkd_plugin.report.agreement import SHARES
from mmkd_plugin.report.checks import findings, terms_of
from mmkd_plugin.report.curves import Plot, svg
from mmkd_plugin.report.reading import Run
from mmkd_plugin.report.standing import Standing, standing_of
from mmkd_plugin.saving import write_text
from mmkd_plugin.teachers.configs import teacher_configs

#: Name of the page that the hook writes to a work dir.
FILE = 'report.html'

#: By it a page is known to be ours, which may be written again.
MARK = '<!-- written by mmkd_plugin.report -->'

STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(330px, 100%), 1fr));
  gap: 1rem; margin: 1rem 0; }
.plots figure { margin: 0; padding: 0.8rem; background: var(--ground); border-radius: 8px; }
.plots .plot { max-width: 640px; }
.plots svg { display: block; width: 100%; height: auto; }
.plots img { display: block; width: 100%; height: auto; border-radius: 4px; background: #fff; }
figcaption { margin: 0 0 0.4rem; }
pre { overflow-x: auto; padding: 0.8rem; background: var(--ground); border-radius: 8px;
  font-size: 0.8rem; line-height: 1.3; }
ul.checks { list-style: none; padding: 0; } ul.checks li { margin: 0.3rem 0; padding-left: 1.5rem;
  text-indent: -1.5rem; }
.mark { display: inline-block; width: 1.5rem; text-indent: 0; font-weight: 600; }
"""

MIB = 2**20


def write_report(
    runs: Sequence[Run], file: Path, alone: float | None = None, teacher: float | None = None
) -> Path:
    """Writes the report of some runs.

    Args:
        runs (Sequence[Run]): The runs; several are compared.
        file (Path): The page. A report that is there is written again.
        alone (float, optional): Score of the student alone, if no run tells it.
        teacher (float, optional): Score of the teacher, if nothing tells it.

    Returns:
        Path: The written file.

    Raises:
        UsageError: If there is another file in its place.
    """
    if file.exists() and MARK not in file.read_text(encoding='utf-8', errors='replace'):
        raise UsageError(f'{file} exists and is no report of ours; take another --out')
    standings = [standing_of(run, runs, alone, teacher) for run in runs]
    body = [MARK, '\n', _scores(runs, standings), _curves(runs, standings)]
    for run, standing in zip(runs, standings):
        body.append(f'<section>\n{"".join(_sections(run, standing, len(runs) > 1))}</section>\n')
    names = [run.name for run in runs]
    title = names[0] if len(names) == 1 else f'{len(names)} runs'
    write_text(file, document(title, ''.join(body), STYLE))
    return file


def _scores(runs: Sequence[Run], standings: Sequence[Standing | None]) -> str:
    """The scores of all runs, beside those of student and teacher."""
    rows = []
    for run, standing in zip(runs, standings):
        metric = run.metric
        score = None if metric is None else run.score(metric)
        row = [run.name, '' if score is None else f'{score:.2f}', metric or 'not validated']
        if standing is None:
            row += [''] * 4
        else:
            row += [_number(one and one.value) for one in (standing.alone, standing.teacher)]
            row.append('' if standing.gain is None else f'{standing.gain:+.2f}')
            row.append('' if standing.share is None else f'{standing.share:.0%}')
        rows.append(row)
    head = ['run', 'score', 'metric', 'student alone', 'teacher', 'gain', 'share of the gap']
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    text = table([head[i] for i in used], [[row[i] for i in used] for row in rows])
    found = list(dict.fromkeys(itertools.chain.from_iterable(map(_sources, standings))))
    return f'{text}\n' + ''.join(f'<p class="soft">{escape(line)}</p>\n' for line in found)


def _sources(standing: Standing | None) -> Iterator[str]:
    """Where the scores come from that are not those of the run, or how they are given."""
    if standing is None:
        return
    for name, score, hint in (
        ('Student alone', standing.alone, 'name the work dir of its training too, or --alone'),
        ('Teacher', standing.teacher, 'name the work dir of its training too, or --teacher'),
    ):
        yield f'{name}: not known; {hint}.' if score is None else f'{name}: {score.source}.'


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _curves(runs: Sequence[Run], standings: Sequence[Standing | None]) -> str:
    """The scores over time, all runs in one plot for each metric that counts."""
    plots = []
    for metric in dict.fromkeys(run.metric for run in runs if run.metric is not None):
        curves = {run.name: run.curve(metric) for run in runs if run.curve(metric)[0]}
        levels: dict[str, float] = {}
        for standing in standings:
            if standing is not None and standing.metric == metric:
                if standing.teacher is not None:
                    levels['teacher'] = standing.teacher.value
                if standing.alone is not None:
                    levels['student alone'] = standing.alone.value
        if levels or any(len(values) > 1 for _, values in curves.values()):
            plots.append(Plot(metric, curves, levels))
    curves = {run.name: run.logged('loss') for run in runs if run.logged('loss')[0]}
    if curves:
        plots.append(Plot('loss', curves, log=True))
    return _plots(plots)


def _plots(plots: Sequence[Plot]) -> str:
    figures = ''.join(
        f'<figure class="plot"><figcaption><h3>{escape(plot.title)}</h3></figcaption>'
        f'{svg(plot)}</figure>\n'
        for plot in plots
    )
    return f'<div class="plots">{figures}</div>\n' if figures else ''


def _sections(run: Run, standing: Standing | None, several: bool) -> Iterator[str]:
    """The HTML of one run."""
    if several:
        yield f'<h2>{escape(run.name)}</h2>\n'
    yield _heading('Checks', several)
    yield '<ul class="checks">\n'
    for one in findings(run, standing):
        mark = '✓' if one.good else '!'
        advice = f' <span class="soft">{escape(one.advice)}</span>' if one.advice else ''
        yield f'<li><span class="mark">{mark}</span>{escape(one.text)}{advice}</li>\n'
    yield '</ul>\n'
    yield from _all_scores(run, several)
    yield from _agreement(run, several)
    yield from _terms(run, several)
    yield from _pictures(run, several)
    if run.facts.get('plan'):
        yield f'{_heading("Plan", several)}<pre>{escape(run.facts["plan"])}</pre>\n'
    cost = _cost(run)
    if cost:
        yield f'{_heading("Cost", several)}{definitions(cost)}\n'
    yield f'{_heading("Again", several)}{definitions(_again(run))}\n'


def _all_scores(run: Run, several: bool) -> Iterator[str]:
    """Every score of the validations, where there are more than the one that counts."""
    names = list(dict.fromkeys(name for one in run.validations for name in one.scores))
    if len(names) > 1:
        yield _heading('All scores', several)
        curves = [(name, *run.curve(name)) for name in names]
        rows = [
            (name, f'{values[-1]:.2f}', f'{max(values):.2f}', f'{when[values.index(max(values))]}')
            for name, when, values in curves
        ]
        yield table(['score', 'last', 'highest', 'at iteration'], rows) + '\n'


def _agreement(run: Run, several: bool) -> Iterator[str]:
    """How often student and teacher predict the same."""
    told = {}
    for one in run.facts.get('agreement') or []:
        if one.get('problem'):
            text = f'not measured: {one["problem"]}'
        else:
            shares = [f'{v:.1f} % {SHARES[k]}' for k, v in one['shares'].items() if v is not None]
            text = ', '.join(shares) or 'no boxes that are confident'
            text += f' (validation images: {one["images"]})'
        told[one['teacher']] = text
    if told:
        yield f'{_heading("Agreement with the teacher", several)}{definitions(told)}\n'


def _heading(text: str, several: bool) -> str:
    return f'<h3>{text}</h3>\n' if several else f'<h2>{text}</h2>\n'


def _terms(run: Run, several: bool) -> Iterator[str]:
    """Loss, weight and share of the gradient of each term, over time."""
    names = terms_of(run)
    if not names:
        return
    yield _heading('Terms', several)
    rows = []
    for name in names:
        row = [name]
        for key in ('loss', 'weight', 'share'):
            _, values = run.logged(f'distill.{name}.{key}')
            row += [f'{values[0]:.3g}', f'{values[-1]:.3g}'] if values else ['', '']
        rows.append(row)
    head = ['term', 'loss, first', 'last', 'weight, first', 'last', 'share, first', 'last']
    used = [0, *(i for i in range(1, len(head)) if any(row[i] for row in rows))]
    yield table([head[i] for i in used], [[row[i] for i in used] for row in rows]) + '\n'
    plots = []
    for key, title in (
        ('loss', 'loss of each term'),
        ('weight', 'weight'),
        ('share', "share of the task's gradient"),
    ):
        curves = {name: run.logged(f'distill.{name}.{key}') for name in names}
        curves = {name: curve for name, curve in curves.items() if curve[0]}
        if curves:
            plots.append(Plot(title, curves, log=True))
    yield _plots(plots)


def _pictures(run: Run, several: bool) -> Iterator[str]:
    """The pictures that the hook drew at the end."""
    shown = []
    for picture in run.facts.get('pictures') or []:
        file = run.folders[-1] / picture['file']
        if file.is_file():
            content = base64.b64encode(file.read_bytes()).decode()
            title, text = escape(picture['title']), escape(picture['text'])
            shown.append(
                f'<figure><figcaption><h3>{title}</h3><p class="soft">{text}</p></figcaption>'
                f'<img src="data:image/jpeg;base64,{content}" alt="{title}" loading="lazy">'
                '</figure>\n'
            )
    if shown:
        yield f'{_heading("Pictures", several)}<div class="plots">{"".join(shown)}</div>\n'


def _cost(run: Run) -> dict[str, str]:
    """Time and memory of a step."""
    cost = {}
    step, data = run.mean('time'), run.mean('data_time')
    if step is not None:
        cost['step'] = f'{step * 1e3:.0f} ms' + (
            f', of which {data * 1e3:.0f} ms wait for data' if data is not None else ''
        )
    parts = run.facts.get('parts') or {}
    whole = sum(parts.values())
    if whole:
        steps = run.facts.get('measured_steps', 0)
        cost['parts'] = ', '.join(f'{name} {part / whole:.0%}' for name, part in parts.items()) + (
            f', measured in {steps} step' + 's' * (steps != 1) if steps else ''
        )
    memory = run.mean('memory') or (run.facts.get('peak_bytes') or 0) / MIB
    if memory:
        cost['memory'] = f'{memory:.0f} MiB at most'
    return cost


def _from_the_start(command: Sequence[str]) -> list[str]:
    """A command without the options with which it goes on with an earlier run.

    Examples:
        >>> _from_the_start(['train.py', 'a.py', '--resume', 'iter_4.pth', '--amp', '--resume'])
        ['train.py', 'a.py', '--amp']
    """
    kept, value_follows = [], False
    for word in command:
        is_value, value_follows = value_follows and not word.startswith('-'), word == '--resume'
        if not (is_value or word in ('--resume', '--allow-changes') or '--resume=' in word):
            kept.append(word)
    return kept


def _again(run: Run) -> dict[str, str]:
    """How the run is done again."""
    facts = {}
    command = run.facts.get('command')
    if command:
        facts['command'] = shlex.join(_from_the_start(command))
    for name in ('seed', 'device', 'versions'):
        if run.facts.get(name) is not None:
            facts[name] = str(run.facts[name])
    if run.is_distilled:
        for name, config in teacher_configs(run.cfg.model.get('teacher') or {}).items():
            facts[name] = str(config.get('checkpoint') or config.get('type') or '')
    facts['work dir'] = str(run.folder)
    facts['iterations'] = f'{run.iterations}' + (f' of {run.planned}' if run.planned else '')
    return {name: text for name, text in facts.items() if text}
