"""What autograd keeps between forward and backward, counted without a clock and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(compute: Callable[[], Tensor], *inputs: Tensor) -> int:
    """The size of what a graph keeps for its backward pass, each storage once.

    Args:
        compute (Callable): Makes the graph, such as ``lambda: loss(student, teacher)``.
        inputs (Tensor): What is there anyway; it is not counted, nor are views of it.
    """
    boxes = WeakSet()

    def keep(x: Tensor) -> Box:
        box = Box(x)
        boxes.add(box)  # it goes with the graph that holds it, such as one inside of a forward
        return box

    with saved_tensors_hooks(keep, lambda box: box.x):
        value = compute()
    there = {x.untyped_storage().data_ptr() for x in inputs}
    kept = {box.x.untyped_storage().data_ptr(): box.x.untyped_storage() for box in boxes}
    del value
    return sum(storage.nbytes() for place, storage in kept.items() if place not in there)


class Box:
    """Holds what a graph keeps, as long as the graph lasts."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
