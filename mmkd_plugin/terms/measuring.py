"""Measuring: in some iterations, how hard each term pulls at the student beside the task loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NoReturn

from mmengine.logging import MessageHub
from torch import Tensor

from mmkd_plugin.taps import Maps, Tap, as_list
from mmkd_plugin.taps.classifiers import made_of
from mmkd_plugin.terms.gradient_sizes import Asked, Sizes, measure
from mmkd_plugin.terms.term import Term


def aliases(maps: Maps) -> Maps:
    """The same maps as other tensors, so that a gradient there is that of one term alone."""
    return maps.view_as(maps) if isinstance(maps, Tensor) else [x.view_as(x) for x in maps]


def measure_terms(
    losses: Mapping[Term, Tensor],
    task: Tensor | None,
    maps: Mapping[Tap, Maps],
    compared: Mapping[Term, Maps],
) -> None:
    """Measures the gradients of terms at their taps, and lets the terms take the result.

    The log gets ``distill.<term>.share``, and ``distill.<term>.weight`` of automatic weights.

    Args:
        losses (Mapping[Term, Tensor]): The value of each term that is due.
        task (Tensor, optional): The task loss, a scalar. None while it is off.
        maps (Mapping[Tap, Maps]): The student's maps at each tap, with gradient.
        compared (Mapping[Term, Maps]): What each term was given of the student, as :func:`aliases`.

    Raises:
        ValueError: If an automatic weight cannot be measured.
    """
    asked = {}
    for term, loss in losses.items():
        read = as_list(term.student_tap.of(maps))
        here = [made_of(x) for x in read]
        given = as_list(compared[term]) if term.student_view.kind == 'maps' else here
        given = [x if map_ is place else place for x, map_, place in zip(given, read, here)]
        connector = [p for p in term.connectors.parameters() if p.requires_grad]
        asked[term.name] = Asked(loss, here, given, connector)
    try:
        sizes = measure(task, asked)
    except RuntimeError as error:
        _without(losses, error)
        return
    for term in losses:
        if term.auto is not None:
            _check(term, sizes[term.name])
        _log(term, term.take(sizes[term.name]))


def _without(terms: Mapping[Term, Tensor], error: RuntimeError) -> None:
    """Gives up looking at terms whose gradients torch cannot give; a weight has to be measured."""
    for term in terms:
        if term.auto is not None:
            raise ValueError(
                f"{term.here}.loss.loss_weight='auto': the gradient at '{term.student_tap}' of the "
                'student cannot be measured; give a number. torch said: '
                f'{str(error).strip().splitlines()[0]}'
            ) from error
        term.watch.blind = True


def check_task_for(terms: Iterable[Term], task_weight: float) -> None:
    """Refuses automatic weights without a task loss.

    Args:
        terms (Iterable[Term]): The terms.
        task_weight (float): Factor on the task loss.

    Raises:
        ValueError: If there is an automatic weight, and the factor is 0.
    """
    for term in terms:
        if term.auto is not None and task_weight == 0:
            _refuse_without_task(term)


def _refuse_without_task(term: Term) -> NoReturn:
    raise ValueError(
        f"{term.here}.loss.loss_weight='auto' is a share of the task loss's gradient, and the task "
        'loss is off when the term comes on: give a number, or let their schedules meet'
    )


def _check(term: Term, sizes: Sizes) -> None:
    here = f"{term.here}.loss.loss_weight='auto'"
    if sizes.task is None:
        if not term.auto.measured.any():
            _refuse_without_task(term)
        return
    if not all(sizes.reached):
        which = '' if len(sizes.reached) == 1 else f'[{sizes.reached.index(False)}]'
        raise ValueError(
            f"{here}: the task loss does not depend on '{term.student_tap}'{which} of the student, "
            'so there is no gradient to take a share of; give a number, or tap a place that the '
            'task loss trains'
        )


def _log(term: Term, sizes: Sizes) -> None:
    hub = MessageHub.get_current_instance()
    if term.auto is not None:
        hub.update_scalar(f'train/{term.here}.weight', term.auto.weight.mean().item())
    if sizes.task is not None:
        share = (sizes.term.norm() / sizes.task.norm()).item()
        if math.isfinite(share):  # else the task loss does not reach these maps
            hub.update_scalar(f'train/{term.here}.share', share)
