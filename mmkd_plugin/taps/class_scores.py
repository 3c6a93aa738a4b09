"""Class scores: which of the maps that taps read are those of classes, and how they lie there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmkd_plugin.taps.classifiers import CLASS_SCORES, ForwardHook
from mmkd_plugin.taps.tap import (
    Maps,
    Tap,
    as_list,
    find_module,
    flatten,
    module_around,
    places_of,
)

#: The tensors that heads gave, by the head: scores of classes, and those that mix in other values.
Given = dict[nn.Module, tuple[list[Tensor], list[Tensor]]]


class ClassScores(NamedTuple):
    """How the scores of classes lie in a map.

    Args:
        dim (int): The dimension of the classes: 1 in a map ``(N, A·C, H, W)``.
        classes (int): ``num_classes`` of the head.
        each (int): Scores of each anchor: as many as classes, one more with a background behind
            them, or a single one that tells two classes apart. 0 where other values lie among them.
    """

    dim: int
    classes: int
    each: int


@contextmanager
def heads_watched(model: nn.Module, taps: Sequence[Tap]) -> Iterator[Given]:
    """Notes what the heads around taps give while the block runs, however they are called.

    Args:
        model (nn.Module): The model that is going to run.
        taps (Sequence[Tap]): The taps.

    Yields:
        dict: Filled while the model runs.
    """
    heads = {module_around(model, tap, 'num_classes') for tap in taps} - {None}
    given: Given = {head: ([], []) for head in heads}
    hooks = [ForwardHook(head, partial(_note, head, given[head])) for head in heads]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _note(head: nn.Module, given: tuple[list, list], output: Any) -> Any:
    for noted, found in zip(given, _sorted_out(head, output)):
        noted += found
    return output


def _sorted_out(head: nn.Module, output: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The scores of classes in what a head gives, and the tensors that mix them with others.

    A detector's head says by the arguments of its loss what it gives.
    """
    if not isinstance(output, (list, tuple)):
        return ([output], []) if isinstance(output, Tensor) else ([], [])
    tensors = [x for x in flatten(output) if isinstance(x, Tensor)]
    if not hasattr(head, 'loss_by_feat') or hasattr(head, 'conv_seg'):
        return tensors, []
    names = list(inspect.signature(head.loss_by_feat).parameters)
    scores = [part for name, part in zip(names, output) if 'cls' in name]
    if scores:
        return [x for x in flatten(scores) if isinstance(x, Tensor)], []
    return [], [] if any('seg' in name for name in names) else tensors


def class_scores(
    model: nn.Module, tap: Tap, maps: Maps, given: Given
) -> tuple[ClassScores | None, ...]:
    """How class scores lie in each map that a tap read; None for a map of something else.

    Args:
        model (nn.Module): The model.
        tap (Tap): The tap.
        maps (Maps): What it read.
        given (dict): What the heads gave in the same forward; see :func:`heads_watched`.
    """
    head = module_around(model, tap, 'num_classes')
    if head is None:
        return (None,) * len(as_list(maps))
    return tuple(_of_map(model, tap, head, x, given.get(head, ([], []))) for x in as_list(maps))


def _of_map(
    model: nn.Module, tap: Tap, head: nn.Module, x: Tensor, given: tuple[list, list]
) -> ClassScores | None:
    scores, mixed = given
    if any(_same(x, other) for other in mixed):
        return ClassScores(1, head.num_classes, 0)
    place, module = places_of(model, tap)[0], find_module(model, tap, 'the model')
    classifies = place.where == CLASS_SCORES or (
        place.where == 'output'
        and (
            module is getattr(head, 'conv_seg', None)
            or (isinstance(module, nn.Linear) and 'cls' in place.path.rpartition('head')[2])
        )
    )
    if not classifies and not any(_same(x, other) for other in scores):
        return None
    for each in _counts(head):
        if x.ndim in (2, 4) and _fits(x.shape[1], each, head):
            return ClassScores(1, head.num_classes, each)
        if x.ndim > 2 and x.shape[-1] == each:
            return ClassScores(-1, head.num_classes, each)
    return None


def are_independent(head: nn.Module) -> bool | None:
    """Whether a detector's head has a sigmoid for each class; None for a segmentor's head."""
    sigmoid = getattr(head, 'use_sigmoid_cls', None)
    if sigmoid is None and hasattr(head, 'loss_cls'):
        sigmoid = getattr(head.loss_cls, 'use_sigmoid', False)
    return None if sigmoid is None else bool(sigmoid)


def _counts(head: nn.Module) -> list[int]:
    """How many scores an anchor of a head may have, the likeliest first."""
    classes = head.num_classes
    said = getattr(head, 'cls_out_channels', None)
    if said is None and hasattr(head, 'conv_seg'):
        said = getattr(head, 'out_channels', None)
    return [said] if isinstance(said, int) and said > 0 else [classes, classes + 1]


def _fits(channels: int, each: int, head: nn.Module) -> bool:
    return channels == each if hasattr(head, 'conv_seg') else channels % each == 0


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape)
