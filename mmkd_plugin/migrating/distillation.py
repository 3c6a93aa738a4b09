"""What a config or a command of another program does, before it is written as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmkd_plugin.migrating.losses import Loss


@dataclass
class Term:
    """A term of ours: one loss on one or several pairs of maps.

    Args:
        losses (list[Loss]): The loss of each pair; they differ in numbers alone.
        student (list[str]): Taps of the student.
        teacher (list[str]): Taps of the teacher.
    """

    losses: list[Loss]
    student: list[str]
    teacher: list[str]


@dataclass
class Distillation:
    """What a config does.

    Args:
        student (str | dict): Path of the student's config, or the config of its model.
        teacher (str | dict): The same of the teacher.
        checkpoint (str, optional): The teacher's weights.
        terms (dict[str, Term]): Terms by their names.
        task (bool): Whether the student's own losses count.
        notes (list[str]): What the user has to know.
        start (list[str]): Modules that the student takes over from the teacher.
        stop (int, optional): The epoch from which on nothing is distilled.
    """

    student: str | Mapping[str, Any]
    teacher: str | Mapping[str, Any]
    checkpoint: str | None
    terms: dict[str, Term]
    task: bool = True
    notes: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    stop: int | None = None


def add_to(terms: dict[str, Term], loss: Loss, student: str, teacher: str) -> None:
    """Adds a pair of maps: to the term with this loss, or as a term of its own.

    Args:
        terms (dict[str, Term]): Terms by their names, changed in place.
        loss (Loss): What compares the maps.
        student (str): Tap of the student.
        teacher (str): Tap of the teacher.
    """
    term = next((one for one in terms.values() if _together(one.losses[0], loss)), None)
    if term is None:
        term = Term([], [], [])
        same = sum(name.rstrip('0123456789') == loss.name for name in terms)
        terms[loss.name if not same else f'{loss.name}{same + 1}'] = term
    term.losses.append(loss)
    term.student.append(student)
    term.teacher.append(teacher)


def sort_taps(terms: dict[str, Term]) -> None:
    """Brings the maps of each term whose weights are all the same into the order of their names.

    Args:
        terms (dict[str, Term]): Terms by their names, changed in place.
    """
    for term in terms.values():
        if all(loss == term.losses[0] for loss in term.losses):
            pairs = sorted(zip(term.student, term.teacher, strict=True))
            term.student, term.teacher = ([*column] for column in zip(*pairs, strict=True))


def _together(one: Loss, other: Loss) -> bool:
    """Whether two losses are one term, whose weights may differ between the maps."""
    if (one.type, one.connector) != (other.type, other.connector):
        return False
    return one.arguments == other.arguments or one.type in LISTS


#: Losses that take lists for their arguments, a value for each map.
LISTS = ('AttentionGuidedLoss',)
