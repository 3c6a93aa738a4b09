"""What is told of a step whose loss is not finite, or far too large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub

from mmkd_plugin.health import Finding, as_number
from mmkd_plugin.taps import Maps, as_list
from mmkd_plugin.teachers.base import Lesson, Preview
from mmkd_plugin.terms.term import Term
from mmkd_plugin.views import View


def shown_to(term: Term, models: Mapping[str, Lesson | Preview]) -> list[Maps]:
    """Returns what each teacher of a term shows it."""
    return [models[name].shown[term.teacher_view] for name in term.teachers]


def told_of(
    key: str,
    loss: Any,
    active: Sequence[Term],
    shown: Mapping[View, Maps],
    lessons: Mapping[str, Lesson],
) -> str:
    """What is said of a loss that is not finite, or far too large."""
    iteration = MessageHub.get_current_instance().runtime_info.get('iter', 0)
    when = f'{as_number(loss):.4g} at iteration {iteration}'
    term = next((one for one in active if key == f'{one.here}.loss'), None)
    if term is not None:
        student = shown[term.student_view]
        teacher = [x for maps in shown_to(term, lessons) for x in as_list(maps)]
        return (
            f'{term.here}: the loss is {when}. '
            f"'{term.student_tap}' of the student: {ranges_of(student)}. "
            f"'{term.teacher_tap}' of the teacher: {ranges_of(teacher)}. "
            'Lower the learning rate or `loss_weight`, add gradient clipping, or train without AMP'
        )
    owner = next((name for name, one in lessons.items() if key in one.losses), None)
    whose = "the student's own loss" if owner is None else f"a loss of teacher '{owner}'"
    return (
        f'`{key}`, {whose}, is {when}. Lower the learning rate, add gradient clipping, look at the '
        'images and labels of this iteration, or train without AMP'
    )


def findings(
    losses: Mapping[str, Any],
    active: Sequence[Term],
    shown: Mapping[View, Maps],
    lessons: Mapping[str, Lesson],
) -> list[Finding]:
    """What the terms of a step compared, in the order in which it was computed, and the losses."""
    maps = {
        f"'{term.teacher_tap}' of teacher '{name}'": lessons[name].shown[term.teacher_view]
        for term in active
        for name in term.teachers
    }
    maps |= {f"'{term.student_tap}' of the student": shown[term.student_view] for term in active}
    found = [
        Finding(name, ranges_of(one), all(bool(torch.isfinite(x).all()) for x in as_list(one)))
        for name, one in maps.items()
    ]
    numbers = {key: as_number(value) for key, value in losses.items() if 'loss' in key}
    return found + [
        Finding(key, f'{value:.6g}', math.isfinite(value)) for key, value in numbers.items()
    ]


def ranges_of(maps: Maps) -> str:
    return '; '.join(
        f'{tuple(t.shape)} {t.min().item():.3g} to {t.max().item():.3g}, '
        f'{(~torch.isfinite(t)).sum().item()} of {t.numel()} not finite'
        if t.numel()
        else f'{tuple(t.shape)}, which is empty'
        for t in as_list(maps)
    )
