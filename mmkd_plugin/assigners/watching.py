"""Watching: reads the results of assigners during a model's own training forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmkd_plugin.assigners.heads import reader_of
from mmkd_plugin.losses.numerics.assigned import Assigned


@contextmanager
def assigners_watched(model: nn.Module, heads: Iterable[str]) -> Iterator[dict[str, Assigned]]:
    """Notes the results of assigners while the block runs; nothing is assigned twice.

    Args:
        model (nn.Module): The model that is going to compute its loss.
        heads (Iterable[str]): Names of its heads, see :func:`~mmkd_plugin.assigners.find_head`.

    Yields:
        dict[str, Assigned]: The results by the name of the head, filled while the model runs.
    """
    found: dict[str, Assigned] = {}
    watched = {name: model.get_submodule(name) for name in heads}
    before = {name: vars(head).get('get_targets') for name, head in watched.items()}
    for name, head in watched.items():
        head.get_targets = _noting(head, head.get_targets, name, found)
    try:
        yield found
    finally:
        for name, method in before.items():
            if method is None:
                del watched[name].get_targets
            else:
                watched[name].get_targets = method


def _noting(
    head: nn.Module, method: Callable[..., Any], name: str, found: dict[str, Assigned]
) -> Callable[..., Any]:
    read, signature = reader_of(head), inspect.signature(method)

    @functools.wraps(method)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if result is not None:  # the head itself refuses that
            found[name] = read(head, signature.bind(*args, **kwargs).arguments, result)
        return result

    return noting
