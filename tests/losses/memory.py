"""What autograd keeps between forward and backward, counted without a clock and without a GPU."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(compute: Callable[[], Tensor], *inputs: Tensor) -> int:
    """The size of what a graph keeps for its backward pass, each storage once.

    Args:
        compute (Callable): Makes the graph, such as ``lambda: loss(student, teacher)``.
        inputs (Tensor): What is there anyway; it is not counted, nor are views of it.
    """
    kept = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, or its place is reused
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        compute()
    there = {x.untyped_storage().data_ptr() for x in inputs}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in there)
