"""What a loss allocates, measured without a clock and without a GPU."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Watches the storages made while it is on, forward and backward: the largest, and the peak.

    It counts the calls too: there is no loop where larger inputs take no more of them.
    """

    def __init__(self):
        super().__init__()
        self.calls = self.largest = self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.seen.update(x.untyped_storage() for x in args if isinstance(x, torch.Tensor))
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage() not in self.seen:
                self.add(x.untyped_storage())
        return out

    def add(self, storage):
        self.seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, storage.nbytes())
        weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, size):
        self.live -= size
