"""Picks taps and a loss for a pair of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mmkd_plugin.choosing.looking import Level, Look, ScoreMap
from mmkd_plugin.choosing.methods import BESIDE, MEASURED, METHODS, NAMES
from mmkd_plugin.teachers.classes import Names, order_between
from mmkd_plugin.words import did_you_mean

#: Strides that differ by less than this factor are one: sizes are rounded.
SAME_STRIDE = 1.2

BY_HAND = (
    'write the config by hand, with `student_tap` and `teacher_tap` where the two compute the same '
    "thing: distill=dict(pkd=dict(student_tap='...', teacher_tap='...', "
    "loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto'))); docs/taps.md says how to "
    'find them'
)


class Choice(NamedTuple):
    """A term of ``distill``, and the reason for it.

    Args:
        kind (str): What is compared, a key of :data:`METHODS`.
        method (str): Name of the method, and of the term.
        term (dict[str, Any]): The config of the term.
        why (str): The reasons in a sentence.
        beside (dict[str, dict[str, Any]]): Terms that come with it, by their names.
    """

    kind: str
    method: str
    term: dict[str, Any]
    why: str
    beside: Mapping[str, dict[str, Any]] = MappingProxyType({})

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """All terms, by their names."""
        return {self.method: self.term, **self.beside}

    @property
    def measured(self) -> bool:
        """Whether docs/choosing.md has the gain of such a term."""
        return (self.kind, self.method) in MEASURED

    @property
    def said(self) -> str:
        """What is compared and why, as the tool says it and the config notes it."""
        if self.measured:
            return f'Compares {self.why}.'
        return (
            f'Compares {self.why}. The gain of this choice is not measured: docs/choosing.md has '
            'pairs of other kinds. Train the student alone too, and compare.'
        )


def check_method(name: str | None) -> None:
    """Refuses a name that no method has.

    Args:
        name (str, optional): The name; None is accepted.

    Raises:
        ValueError: If it is unknown; the message has the nearest one.
    """
    known = list(dict.fromkeys(one for methods in METHODS.values() for one in methods))
    if name is not None and name not in known:
        raise ValueError(
            f'there is no method {name}{did_you_mean(name, known)} (known: {", ".join(known)})'
        )


def choose(student: Look, teacher: Look, method: str | None = None) -> Choice:
    """Picks what to compare in two models, and how.

    Args:
        student (Look): What the student shows.
        teacher (Look): What the teacher shows.
        method (str, optional): Name of a method. Defaults to None: the first that fits.

    Returns:
        Choice: The term.

    Raises:
        ValueError: If there is no such method, or nothing in the two models suits it.

    Examples:
        >>> from mmkd_plugin.choosing import Level, Look, choose
        >>> levels = (Level('neck[0]', 256, 8.0), Level('neck[1]', 256, 16.0))
        >>> choose(Look(neck=levels), Look(neck=levels)).term['tap']
        'neck'
    """
    check_method(method)
    offers = _offers(student, teacher)
    if not offers:
        raise ValueError(
            f'nothing to compare was found: the student has {student}, the teacher has {teacher}; '
            f'{BY_HAND}'
        )
    for kind, methods in METHODS.items():
        name = method or next(iter(methods))
        if kind in offers and name in methods:
            why = f'{NAMES[kind]}{_instead_of_scores(student, teacher, kind)}: {methods[name].why}'
            first = Choice(kind, name, _term(offers, kind, name), why)
            return first if method else _with_another(first, offers)
    fitting = dict.fromkeys(name for kind in METHODS if kind in offers for name in METHODS[kind])
    raise ValueError(
        f'{method} compares nothing that both models have{_because(student, teacher, method)}; for '
        f'these two there are {", ".join(fitting)}'
    )


def _because(student: Look, teacher: Look, method: str) -> str:
    """Why a method does not fit two models that both have what it compares."""
    kinds = {kind for kind, methods in METHODS.items() if method in methods}
    if kinds & {'queries', 'mask queries'} and None not in (student.queries, teacher.queries):
        ours, theirs = student.queries.form, teacher.queries.form
        if ours != theirs:
            return f', because the student takes queries that are {ours}, the teacher {theirs}'
        return ', because the classes differ'
    if 'head' in kinds and None not in (student.head, teacher.head):
        return ', because their heads or classes differ'
    if 'rois' in kinds and student.rois and teacher.rois:
        return ', because the classes differ'
    return _instead_of_scores(student, teacher, '') if 'scores' in kinds else ''


def _term(offers: Mapping[str, dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return {**offers[kind], 'loss': dict(METHODS[kind][name].loss, loss_weight='auto')}


def _with_another(choice: Choice, offers: Mapping[str, dict[str, Any]]) -> Choice:
    """Adds the term that does best beside the first one, if it fits."""
    for kind, name in BESIDE.get(choice.kind, ()):
        if kind in offers:
            why = f'{choice.why}; and {NAMES[kind]}: {METHODS[kind][name].why}'
            return choice._replace(why=why, beside={name: _term(offers, kind, name)})
    return choice


Taps = str | list[str]


def _offers(student: Look, teacher: Look) -> dict[str, dict[str, Any]]:
    """The keys of a term that say what is compared, by the kind of pair."""
    offers: dict[str, dict[str, Any]] = {}
    names = student.classes, teacher.classes
    if same_classes(student.scores, teacher.scores, names):
        offers['scores'] = _taps(student.scores.tap, teacher.scores.tap)
    if student.features and teacher.features and student.features.learns:
        offers['features'] = _taps(student.features.tap, teacher.features.tap)
    if same_queries(student, teacher):
        if student.queries.answers == 'boxes':
            offers['queries'] = dict(queries=dict(random=300))
        else:
            offers['mask queries'] = dict(queries=dict(random=0, student=True))
    if same_heads(student, teacher):
        offers['head'] = _taps(student.head.tap, teacher.head.tap)
    for root in ('neck', 'backbone'):
        ours, theirs = getattr(student, root), getattr(teacher, root)
        pairs = matching_levels(ours, theirs, in_order=root == 'backbone')
        if pairs:
            same = all(s.channels == t.channels for s, t in pairs)
            kind = root if same or root == 'backbone' else f'other {root}'
            sides = zip(*pairs)
            offers[kind] = _taps(
                *(_of_levels(root, side, whole) for side, whole in zip(sides, (ours, theirs)))
            )
        if pairs and root == 'backbone':
            offers['last stage'] = _taps(*(level.tap for level in pairs[-1]))
    if student.stacked and (pairs := matching_levels(student.stages, _stages(teacher))):
        offers['stages'] = _taps(*(_one_or_all([one.tap for one in side]) for side in zip(*pairs)))
    stages = list(zip(student.rois, teacher.rois))  # a single stage is like the first of several
    if stages and all(same_classes(*pair, names) for pair in stages):
        offers['rois'] = _taps(*(_one_or_all([one.tap for one in side]) for side in zip(*stages)))
    return offers


def _stages(teacher: Look) -> tuple[Level, ...]:
    """What stages of a student can be compared with: stages, or else levels of the backbone."""
    return teacher.stages or teacher.backbone


def same_queries(student: Look, teacher: Look) -> bool:
    """Whether both decoders can be asked with the same queries, for the same classes in one order.

    Args:
        student (Look): What the student shows.
        teacher (Look): What the teacher shows.
    """
    if student.queries is None or student.queries != teacher.queries:
        return False
    return _in_one_order(student.classes, teacher.classes)


def same_heads(student: Look, teacher: Look) -> bool:
    """Whether the heads of two one-stage detectors say the same thing at each place.

    Args:
        student (Look): What the student shows.
        teacher (Look): What the teacher shows.
    """
    if None in (student.head, teacher.head) or student.head.form != teacher.head.form:
        return False
    return _in_one_order(student.classes, teacher.classes)


def _in_one_order(ours: Names | None, theirs: Names | None) -> bool:
    """Whether two models have the same classes in one order, as far as their names are known."""
    if None in (ours, theirs):
        return True
    order = order_between(ours, theirs)
    return order is not None and order.identity


def same_classes(
    ours: ScoreMap | None, theirs: ScoreMap | None, names: tuple[Names | None, Names | None]
) -> bool:
    """Whether class scores of a student and a teacher can be compared.

    Args:
        ours (ScoreMap, optional): The student's.
        theirs (ScoreMap, optional): The teacher's.
        names (tuple): The names of the classes of both, None where they are not known.
    """
    if ours is None or theirs is None:
        return False
    if None not in names and (len(names[0]), len(names[1])) == (ours.classes, theirs.classes):
        order = order_between(*names)
        if order is None:
            return False
        if not order.identity:
            return theirs.each >= theirs.classes and ours.each >= ours.classes
    return (ours.classes, ours.each) == (theirs.classes, theirs.each)


def matching_levels(
    ours: Sequence[Level], theirs: Sequence[Level], in_order: bool = False
) -> list[tuple[Level, Level]]:
    """Pairs levels of the same stride; where a stride comes several times, its last level.

    If no stride is common, the last levels are a pair. Levels of the student that do not learn from
    its own loss are left out.

    Args:
        ours (Sequence[Level]): The student's.
        theirs (Sequence[Level]): The teacher's.
        in_order (bool): Whether as many levels on both sides belong together one by one, whatever
            their strides, as stages of backbones do. Defaults to False.

    Examples:
        >>> ours = [Level('a', 8, 4.0), Level('b', 8, 8.0)]
        >>> theirs = [Level('c', 8, 8.0), Level('d', 8, 16.0)]
        >>> [(s.tap, t.tap) for s, t in matching_levels(ours, theirs)]
        [('b', 'c')]
    """
    if len(ours) == len(theirs) and (in_order or all(map(_same_stride, ours, theirs))):
        return [(s, t) for s, t in zip(ours, theirs) if s.learns]
    ours = [one for one in ours if one.learns]
    pairs = []
    for number, level in enumerate(ours):
        fitting = [one for one in theirs if _same_stride(level, one)]
        if fitting and not any(_same_stride(level, later) for later in ours[number + 1 :]):
            pairs.append((level, fitting[-1]))
    return pairs or list(zip(ours[-1:], theirs[-1:]))


def _same_stride(one: Level, other: Level) -> bool:
    return abs(math.log(one.stride / other.stride)) < math.log(SAME_STRIDE)


def _of_levels(root: str, levels: Sequence[Level], whole: Sequence[Level]) -> Taps:
    """A tap for some levels: the module itself for all of them."""
    if list(levels) == list(whole):
        return root
    return _one_or_all([level.tap for level in levels])


def _one_or_all(taps: list[str]) -> Taps:
    return taps[0] if len(taps) == 1 else taps


def _taps(ours: Taps, theirs: Taps) -> dict[str, Taps]:
    return dict(tap=ours) if ours == theirs else dict(student_tap=ours, teacher_tap=theirs)


def _instead_of_scores(student: Look, teacher: Look, kind: str) -> str:
    """Why class scores are not compared, if both models have some."""
    if kind == 'scores' or None in (student.scores, teacher.scores):
        return ''
    if same_classes(student.scores, teacher.scores, (student.classes, teacher.classes)):
        return ''
    return ', because the classes differ'
