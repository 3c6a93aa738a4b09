"""Sizes of gradients at the student's taps: those of the task loss and of the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from mmkd_plugin.taps.task_gradient import gradients_of, is_half


class Sizes(NamedTuple):
    """Sizes of gradients at the maps of one term, in one iteration, over all processes.

    Args:
        term (Tensor): L2 norm of the term's gradient for each map, ``(n,)``.
        task (Tensor, optional): That of the task loss. None while the task loss is off.
        reached (list[bool]): Whether the task loss depends on each map.
        connector (Tensor): L2 norm of the term's gradient in its connectors, a scalar.
    """

    term: Tensor
    task: Tensor | None
    reached: list[bool]
    connector: Tensor


class Asked(NamedTuple):
    """What is measured of one term.

    Args:
        loss (Tensor): The value of the term, a scalar with an autograd graph.
        maps (Sequence[Tensor]): The student's maps at its taps, ``(N, C, H, W)``.
        compared (Sequence[Tensor]): The same maps as the term got them. They differ from ``maps``
            where one map is made from another one, and the term's gradient at each is wanted alone.
        connector (Sequence[Tensor]): The parameters of its connectors. Defaults to ``()``.
    """

    loss: Tensor
    maps: Sequence[Tensor]
    compared: Sequence[Tensor]
    connector: Sequence[Tensor] = ()


def measure(task: Tensor | None, asked: Mapping[str, Asked]) -> dict[str, Sizes]:
    """Measures gradients at the taps of some terms; the graphs are kept for the training step.

    All processes get the same sizes: those of the batches of all of them.

    Args:
        task (Tensor, optional): The task loss, a scalar. None while it is off.
        asked (Mapping[str, Asked]): What to measure, by the names of the terms.

    Returns:
        dict[str, Sizes]: The sizes, by the same names.

    Raises:
        RuntimeError: If torch cannot differentiate there, as with activation checkpointing.

    Examples:
        >>> x = torch.ones(1, 2, 2, 2, requires_grad=True)
        >>> sizes = measure((3 * x).sum(), dict(hint=Asked(x.sum(), [x], [x])))['hint']
        >>> (sizes.task / sizes.term).tolist()
        [3.0]
    """
    maps = list({id(x): x for one in asked.values() for x in one.maps}.values())
    slopes = [None] * len(maps) if task is None else _squares(task, maps)
    of_task = {id(x): slope for x, slope in zip(maps, slopes)}
    rows, zero = [], maps[0].new_zeros((), dtype=torch.float32)
    for one in asked.values():
        squares = _squares(one.loss, [*one.compared, *one.connector])
        here = [zero if square is None else square for square in squares]
        there = [zero if of_task[id(x)] is None else of_task[id(x)] for x in one.maps]
        count = len(one.maps)
        rows.append(torch.stack([*here[:count], *there, sum(here[count:], zero)]))
    if get_world_size() > 1:
        together = torch.cat(rows)
        all_reduce(together)
        rows = together.split([len(row) for row in rows])
    result = {}
    for (name, one), row in zip(asked.items(), rows):
        count, row = len(one.maps), row.sqrt()
        result[name] = Sizes(
            row[:count],
            None if task is None else row[count : 2 * count],
            [of_task[id(x)] is not None for x in one.maps],
            row[-1],
        )
    return result


def _squares(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Squared L2 norms of the gradients of a loss; None for tensors that it does not depend on."""
    learning = [x for x in tensors if x.requires_grad]
    if not loss.requires_grad or not learning:
        return [None] * len(tensors)
    squares = _squares_of(gradients_of(loss, learning, keep_graph=True))
    known = [square for square in squares if square is not None]
    if any(map(is_half, learning)) and known and not torch.isfinite(torch.stack(known)).all():
        # float16 ends at 65504: the gradient of a large loss needs no scale to be seen
        squares = _squares_of(gradients_of(loss, learning, keep_graph=True, scale=1.0))
    found = {id(x): square for x, square in zip(learning, squares)}
    return [found.get(id(x)) for x in tensors]


def _squares_of(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if g is None else g.float().square().sum() for g in gradients]
