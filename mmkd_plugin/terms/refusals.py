"""Refusals: terms whose parts do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmkd_plugin.assigners import is_behind_proposals
from mmkd_plugin.explanations import Explainer, Scores
from mmkd_plugin.taps import Taps
from mmkd_plugin.teachers.base import Teacher
from mmkd_plugin.teachers.classes import classes_at_build
from mmkd_plugin.terms.needs import FROM_BATCH, FROM_NORM, FROM_ROIS, FROM_RUN, FROM_STUDENT

if TYPE_CHECKING:
    from mmkd_plugin.terms.term import Term


def check_explainer(term: Term, converts: Any) -> None:
    """Refuses an explainer that does not fit the loss or a connector."""
    if not isinstance(term.explainer, Explainer):
        raise ValueError(
            f'{term.here}.explainer: {type(term.explainer).__name__} is not an explainer; '
            'take mmkd_plugin.GradCAM, say'
        )
    if term.traits.compares == 'gradients' or term.traits.needs:
        raise ValueError(
            f'{term.here}: {type(term.loss).__name__} cannot compare explanations; take '
            'mmkd_plugin.ExplanationLoss, or leave `explainer` out'
        )
    if converts:
        raise ValueError(
            f'{term.here}: explanations have the size of the image in both models; '
            'leave the connector out'
        )


def check_through(term: Term, teacher_connector: Any) -> None:
    """Refuses maps that go through the teacher where the loss compares something else."""
    if term.explainer is not None or term.traits.compares != 'maps':
        raise ValueError(
            f'{term.here}.through: only maps go through the teacher, and this term compares '
            f'{"explanations" if term.explainer is not None else term.traits.compares}; leave it '
            'out'
        )
    if teacher_connector is not None:
        raise ValueError(
            f'{term.here}.through: what comes out of the teacher is compared as it is; leave '
            '`teacher_connector` out'
        )


def check_queries(term: Term, connector: Any, teacher_connector: Any) -> None:
    """Refuses what cannot be done with the answers of decoders."""
    others = dict(
        explainer=term.explainer,
        through=term.through,
        teacher_connector=teacher_connector,
        connector=None if connector == 'auto' else connector,
    )
    given = next((key for key, value in others.items() if value is not None), None)
    if given is not None:
        raise ValueError(
            f'{term.here} has `{given}` beside `queries`: answers of the decoders are compared as '
            'they are, so leave it out'
        )
    if term.traits.needs_same_channels or term.traits.compares != 'maps':
        raise ValueError(
            f'{term.here}.queries: {type(term.loss).__name__} does not compare the answers of '
            'decoders; take mmkd_plugin.SharedQueriesLoss for boxes, or '
            'mmkd_plugin.SharedMasksLoss for masks'
        )


def check_rois(term: Term, student: Taps, teacher: Taps) -> None:
    """Refuses what cannot be done with RoIs."""
    if len(student.taps) != len(teacher.taps):
        raise ValueError(
            f"{term.here}: '{student}' of the student and '{teacher}' of the teacher are "
            f'{len(student.taps)} and {len(teacher.taps)} taps; each tap of the teacher is asked '
            "on the RoIs of one of the student's, so give as many"
        )
    needs = [n for n in term.traits.needs if n in (*FROM_BATCH, *FROM_STUDENT, *FROM_NORM)]
    others = [need for need in needs if need not in FROM_ROIS]
    if others:
        raise ValueError(
            f'{term.here}: {type(term.loss).__name__} needs `{others[0]}` of maps of the image, '
            f"and '{student}' belongs to RoIs; take another loss, such as mmkd_plugin.HintLoss"
        )


def check_needs(term: Term) -> None:
    """Refuses a loss with an unknown need."""
    known = [*FROM_BATCH, *FROM_RUN, *FROM_STUDENT, *FROM_NORM]
    for need in term.traits.needs:
        if need not in known:
            raise ValueError(
                f"{term.here}: {type(term.loss).__name__} needs '{need}', which is not known "
                f'(known: {", ".join(known)})'
            )
    if term.norm_names is not None and not any(n in FROM_NORM for n in term.traits.needs):
        raise ValueError(
            f'{term.here}.norm: {type(term.loss).__name__} needs no batch norm of the teacher; '
            'leave it out'
        )


def check_raw(term: Term, converts: Any) -> None:
    """Refuses a connector for a loss that compares maps as the models give them.

    One before a way through the teacher is none of these.
    """
    if term.traits.needs_raw_maps and converts and term.through is None:
        raise ValueError(
            f'{term.here}: {type(term.loss).__name__} compares what the heads give as it is; leave '
            'the connector out'
        )


def check_combined(term: Term) -> None:
    """Refuses several teachers where no class scores are compared as they are."""
    if term.compared is None or term.teacher_view.kind != 'maps':
        raise ValueError(
            f'{term.here}: several teachers are combined by their class scores, and this term '
            'does not compare those of both models as they are. Give each teacher a term of its '
            'own'
        )


def check_maps(term: Term, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
    """Refuses maps of both models that are no pairs."""
    if len(students) != len(teachers):
        theirs = term.teacher_tap if term.through is None else term.through.taps
        raise ValueError(
            f"{term.here}: '{term.student_tap}' gives {len(students)} maps in the student and "
            f"'{theirs}' {len(teachers)} in the teacher; name one of them, such as "
            f"student_tap='{term.student_tap.taps[0].path}[0]', or taps with as many"
        )
    for s, t in zip(students, teachers) if term.traits.compares == 'gradients' else ():
        if s.shape != t.shape:
            raise ValueError(
                f"{term.here}: gradients at '{term.student_tap}' of the student "
                f"and '{term.teacher_tap}' of the teacher have different shapes (in a "
                f'trial: {tuple(s.shape)} and {tuple(t.shape)}), and no connector can '
                "change that; tap what has the same in both, such as 'backbone@input' or "
                'the class scores'
            )


def check_classes(
    term: Term, student: Tensor, teacher: Tensor, source: Teacher, ours: int | None
) -> None:
    """Refuses scores of different numbers of classes: a 1×1 convolution cannot match them."""
    if not term.traits.needs_same_channels or term.explainer:
        return
    if term.through is not None or term.queries is not None:
        return
    theirs = source.classes(term.teacher_tap.taps[0])
    if not ours or not theirs or ours == theirs:
        return
    each, rest = divmod(student.shape[1], ours)
    background = (student.shape[1], teacher.shape[1]) == (ours + 1, theirs + 1)
    if background or (not rest and teacher.shape[1] == each * theirs):
        text = (
            f"{term.here}: '{term.student_tap}' gives scores of {ours} classes in the student and "
            f'{theirs} in the teacher. '
        )
        named = len(classes_at_build() or ())
        if named == theirs:
            raise ValueError(
                f"{text}The student's data set names {named}: write num_classes={named} in the "
                'student'
            )
        raise ValueError(
            f'{text}Class scores can be compared only for the same classes: take a teacher of the '
            "student's dataset, or tap features below the classifier"
        )


def check_scores(here: str, ours: Scores | None, theirs: Scores | None) -> None:
    """Refuses to compare explanations of different classes.

    Args:
        here (str): What messages call the term.
        ours (Scores, optional): The kind of the student's class scores, None for a term without
            explainer.
        theirs (Scores, optional): The kind of the teacher's class scores.

    Raises:
        ValueError: If they differ.
    """
    if ours == theirs:
        return
    raise ValueError(
        f'{here}: the student has {ours.classes} classes and the teacher '
        f'{theirs.classes}; the same classes are explained in both'
        if ours.classes != theirs.classes
        else f'{here}: the classes of one model are independent, those of the other are not'
    )


def on_rois(here: str, student: Taps, teacher: Taps) -> bool:
    """Whether the taps of both models lie behind the proposals."""
    sides = {}
    for whose, taps in (('student', student), ('teacher', teacher)):
        inside = set(map(is_behind_proposals, taps))
        if len(inside) > 1:
            raise ValueError(
                f'{here}: some taps of the {whose} lie behind the proposals of a detector and '
                'others do not; give each kind a term of its own'
            )
        sides[whose] = inside.pop()
    if sides['student'] != sides['teacher']:
        inside, outside = sorted(sides, key=sides.get, reverse=True)
        raise ValueError(
            f'{here}: the tap of the {inside} lies behind the proposals of a detector and that of '
            f'the {outside} does not, so they do not belong to the same RoIs; tap the RoI heads of '
            'both'
        )
    return sides['student']
