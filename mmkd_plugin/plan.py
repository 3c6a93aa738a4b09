"""The plan: a table of everything that a distilled run computes."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from mmkd_plugin.assigners.rois import shapes_of
from mmkd_plugin.losses.numerics.memory import ClassMemory
from mmkd_plugin.queries import DECODER
from mmkd_plugin.taps import Maps, as_list
from mmkd_plugin.teachers.base import Preview, Teacher
from mmkd_plugin.terms.term import Term
from mmkd_plugin.views import View
from mmkd_plugin.words import table_text


def plan(
    terms: Mapping[str, Term],
    teachers: Mapping[str, Teacher],
    student: Preview,
    taught: Mapping[str, Preview],
    problem: str | None = None,
) -> str:
    """Describes each term and the work of each teacher.

    Args:
        terms (Mapping[str, Term]): The connected terms, by their names.
        teachers (Mapping[str, Teacher]): The prepared teachers, by their names.
        student (Preview): The student's maps of a made-up image.
        taught (Mapping[str, Preview]): The maps of each teacher, by its name.
        problem (str, optional): Error of the student's training forward, if it could not be tried.
            Defaults to None.

    Returns:
        str: A table with a row for each term, then a line for each teacher.
    """
    table = Table(
        'term', 'student', 'teacher', 'connector', 'loss', 'on', show_lines=len(terms) > 1
    )
    several = sum(not teacher.learns for teacher in teachers.values()) > 1
    for name, term in terms.items():
        teacher = f'{", ".join(term.teachers)}: ' if several else ''
        run = taught[term.teacher]
        s, t = term.student_tap.of(student.maps), term.teacher_tap.of(run.maps)
        connector = term.describe_connectors()
        end = t if term.through is None else term.through.taps.of(run.maps)
        resized = strides(s, student.size) != strides(end, run.size)
        traits = term.traits
        if resized and traits.needs_same_size and not traits.needs_raw_maps:
            connector = f'{connector}, resize' if connector else 'resize'
        table.add_row(
            name,
            _seen(term, term.student_view, student),
            f'{teacher}{_seen(term, term.teacher_view, run)}',
            connector or 'none',
            _loss(term),
            str(term.schedule),
        )
    lines = [table_text(table, width=1000)]
    lines += [teacher.work() for teacher in teachers.values()]
    if problem:
        lines.append(
            'The training forward could not be tried on a made-up label, so the taps were tried in '
            f"mode='tensor'. What it said: {problem}"
        )
    return '\n'.join(lines)


def _loss(term: Term) -> str:
    text = f'{type(term.loss).__name__}\n{term.loss.extra_repr()}'.strip()
    if term.combination is not None:
        text += f'\n{term.combination.describe()}'
    if term.auto is not None:
        text += f"\nso that it has {term.auto.share:g} of the task's gradient"
    if term.traits.compares == 'gradients':
        text += '\non gradients of the task loss'
    if term.through is not None:
        text += f'\n{term.through.describe()}'
    if term.queries is not None:
        text += f'\nqueries: {term.queries}'
    if term.on_rois:
        text += '\non the RoIs that the student samples (R), P of them positive'
    if term.explainer is not None:
        text += f'\non explanations: {term.explainer}'
    if term.compiled is not None:
        text += '\ncompiled'
    memories = sum(m.nbytes for m in term.modules() if isinstance(m, ClassMemory))
    if memories:
        text += f'\nmemory of {memories / 1e6:.3g} MB, in checkpoints too'
    if term.norms is not None:
        text += f'\n{", ".join(term.norms.needs)} of {", ".join(term.norms.names)}'
    return text


def _seen(term: Term, view: View, model: Preview) -> str:
    """Where a model is read, and the shapes of what is found there."""
    if term.queries is None:
        maps = view.taps.of(model.maps)
        said = shapes_of(view.taps, maps) if term.on_rois else shapes(maps, model.size)
        return f'{view.taps}\n{said}'
    scores, beside = as_list(model.shown[view])[:2]
    layers = f'{len(scores)} layers' if len(scores) > 1 else 'last layer'
    masks = beside.ndim == 5  # (layers, N, Q, H, W): then "no object" is among the scores
    return f'{DECODER}\n{layers}, {scores.shape[-1] - masks} classes{", masks" * masks}'


def shapes(maps: Maps, size: int) -> str:
    """Channels and strides of maps, such as ``'256 channels, stride 8, 16'``.

    Args:
        maps (Maps): The maps of a tap in a dry forward, ``(1, C, H, W)`` or of another shape.
        size (int): Height and width of the image of that forward, pixels.

    Returns:
        str: Channels and strides, or the shapes if a map has no height and width.

    Examples:
        >>> import torch
        >>> shapes([torch.rand(1, 256, 16, 16), torch.rand(1, 256, 8, 8)], size=128)
        '256 channels, stride 8, 16'
    """
    tensors = as_list(maps)
    if any(tensor.ndim != 4 for tensor in tensors):
        return '; '.join(str(tuple(tensor.shape[1:])) for tensor in tensors)
    channels = [str(tensor.shape[1]) for tensor in tensors]
    if len(set(channels)) == 1:
        channels = channels[:1]
    texts = ['×'.join(dict.fromkeys(f'{n:.3g}' for n in pair)) for pair in strides(maps, size)]
    return f'{", ".join(channels)} channels, stride {", ".join(texts)}'


def strides(maps: Maps, size: int) -> list[tuple[float, ...]]:
    """Pixels per position of each map ``(N, C, H, W)``, in height and in width.

    Args:
        maps (Maps): The maps of a tap in a dry forward.
        size (int): Height and width of the image of that forward, pixels.

    Returns:
        list[tuple[float, ...]]: Two numbers for each map; maps of another shape are left out.
    """
    return [tuple(size / side for side in t.shape[2:]) for t in as_list(maps) if t.ndim == 4]
