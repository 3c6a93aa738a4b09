"""What a loss allocates, measured without a clock and without a GPU."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import PeakBytes


class Allocations(PeakBytes):
    """Watches the storages made while it is on, forward and backward: the largest, and the peak.

    It counts the calls too: there is no loop where larger inputs take no more of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.largest = max(self.largest, *self.alive.values(), 0)
        return out
