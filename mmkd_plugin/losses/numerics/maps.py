"""One map or several: the pairs of student and teacher, and the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

#: One map, or several (the levels of a pyramid, the stages of a backbone).
Maps = Tensor | Sequence[Tensor]

#: One factor for all maps, or one for each.
Weight = float | Sequence[float]


def sum_over_maps(
    compare: Callable[..., Tensor],
    student: Maps,
    teacher: Maps,
    weight: Weight = 1.0,
    *others: Sequence[Any],
) -> Tensor:
    """Apply ``compare`` to each pair of maps and add the weighted results up.

    Args:
        compare (Callable): Takes one map of the student, one of the teacher and one element of
            each of ``others``; returns a scalar.
        student (Tensor | Sequence[Tensor]): The student's map or maps.
        teacher (Tensor | Sequence[Tensor]): As many maps of the teacher.
        weight (float | Sequence[float]): Factor on the sum, or one on each result. Defaults to 1.0.
        others (Sequence): Further arguments of ``compare``, each with as many elements as there
            are maps.

    Returns:
        Tensor: A scalar.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If the numbers of maps or of weights differ, or there are no maps.
    """
    students, teachers = as_pairs(student, teacher)
    return weighted_sum([compare(*pair) for pair in zip(students, teachers, *others)], weight)


def as_pairs(student: Maps, teacher: Maps) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The maps of the student and as many of the teacher, as two sequences.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If the numbers of maps differ, or there are no maps.
    """
    students, teachers = as_maps(student, 'student'), as_maps(teacher, 'teacher')
    if len(students) != len(teachers):
        raise ValueError(
            f'numbers of maps differ: student {len(students)}, teacher {len(teachers)}; '
            "a tap element such as 'neck[2]' picks one map"
        )
    if not students:
        raise ValueError('there are no maps to compare: the taps gave empty sequences')
    return students, teachers


def one_for_each(value: Any, maps: Maps) -> Sequence[Any]:
    """A list or tuple as it is, another value once for each map.

    Raises:
        ValueError: If there are not as many as maps.
    """
    count = len(as_maps(maps, 'student'))
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f'got {len(value)} labels for {count} maps; give one for each')
    return value


def weighted_sum(losses: Sequence[Tensor], weight: Weight) -> Tensor:
    """Add scalars up, with one factor on the sum or one factor on each.

    Raises:
        ValueError: If there are several weights, and not as many as losses.
    """
    if not isinstance(weight, Sequence):
        return weight * sum(losses[1:], start=losses[0])
    if len(weight) != len(losses):
        raise ValueError(
            f'loss_weight has {len(weight)} entries for {len(losses)} comparisons; give one number '
            'for all, or one for each map'
        )
    terms = [factor * loss for factor, loss in zip(weight, losses)]
    return sum(terms[1:], start=terms[0])


def as_maps(maps: Maps, whose: str) -> Sequence[Tensor]:
    """One map or several as a sequence of maps.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(maps, Tensor):
        return (maps,)
    got = type(maps).__name__
    if isinstance(maps, (list, tuple)):
        if all(isinstance(x, Tensor) for x in maps):
            return maps
        got += f' of {[type(x).__name__ for x in maps]}'
    raise TypeError(f'{whose} must be a tensor, or a list or tuple of tensors, got {got}')
