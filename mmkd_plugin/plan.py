"""The plan: what a distilled run is going to compute, as a table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mmkd_plugin.dry_run import EXAMPLE_SIZE, DryRun
from mmkd_plugin.taps import Maps, Tap
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.term import Term


def plan(
    terms: Mapping[str, Term],
    teachers: Mapping[str, Teacher],
    student: DryRun,
    taught: Mapping[str, DryRun],
) -> str:
    """Describes each term and what every teacher has to compute.

    Args:
        terms (Mapping[str, Term]): The connected terms.
        teachers (Mapping[str, Teacher]): The prepared teachers.
        student (DryRun): What the student's taps gave.
        taught (Mapping[str, DryRun]): What each teacher's taps gave.

    Returns:
        str: Lines of text, at most 118 columns wide.
    """
    table = Table(title='Distillation', title_justify='left', show_lines=len(terms) > 1)
    for column in ('term', 'student', 'teacher', 'connector', 'loss', 'on'):
        table.add_column(column, overflow='fold')
    for name, term in terms.items():
        teacher = f'{term.teacher}: ' if len(teachers) > 1 else ''
        s, t = student.values[term.student_tap], taught[term.teacher].values[term.teacher_tap]
        connector = term.describe_connectors()
        resized = shapes(s).split('×', 1)[1:] != shapes(t).split('×', 1)[1:]
        if resized and getattr(term.loss, 'needs_same_size', True):
            connector = f'{connector}, resize' if connector else 'resize'
        table.add_row(
            name,
            f'{term.student_tap}\n{shapes(s)}',
            f'{teacher}{term.teacher_tap}\n{shapes(t)}',
            connector or 'none',
            f'{type(term.loss).__name__}\n{term.loss.extra_repr()}'.strip(),
            str(term.schedule),
        )
    out = io.StringIO()
    console = Console(file=out, width=118, color_system=None, highlight=False)
    console.print(table)
    for name, teacher in teachers.items():
        taps: list[Tap] = [term.teacher_tap for term in terms.values() if term.teacher == name]
        console.print(f"teacher '{name}' ({teacher.source}): {teacher.work(taps)}")
    if student.problem:
        console.print(
            'The training forward could not be tried on a made-up label, so the taps were tried in '
            f"mode='tensor'. What it said: {student.problem}"
        )
    return '\n'.join(line.rstrip() for line in out.getvalue().splitlines())


def shapes(maps: Maps) -> str:
    """Channels and strides of maps from a dry forward, such as ``'512 × H/8 × W/8'``."""
    tensors: list[Any] = [maps] if not isinstance(maps, list) else maps
    texts = [_shape(tensor) for tensor in tensors]
    if len(texts) > 1 and len({text.split(' × ', 1)[0] for text in texts}) == 1:
        strides = ', '.join(text.split('H', 1)[-1].split(' ')[0] for text in texts)
        return f'{len(texts)} maps, {texts[0].split(" × ")[0]} × H, W {strides}'
    return '; '.join(texts)


def _shape(tensor: Any) -> str:
    if tensor.ndim != 4:
        return ' × '.join(str(size) for size in tensor.shape[1:])
    _, channels, height, width = tensor.shape
    return f'{channels} × {_side("H", height)} × {_side("W", width)}'


def _side(letter: str, size: int) -> str:
    stride, rest = divmod(EXAMPLE_SIZE, size)
    if rest:
        return str(size)
    return letter if stride == 1 else f'{letter}/{stride}'
