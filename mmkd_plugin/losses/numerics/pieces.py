"""Pieces of maps that a CPU's cache holds, and the threads that share them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from typing import TypeVar

import torch
from torch import Tensor

from mmkd_plugin.tracing import is_compiling

Piece = tuple[slice, ...]
R = TypeVar('R')

#: Elements of a piece: with a copy or two, it fits into the L2 cache.
PIECE = 2**18
#: With at least this many pieces per thread, each thread takes pieces of its own.
MANY = 4
#: The memory of a temporary is kept up to this many elements.
KEPT = 8 * PIECE


def each_piece(work: Callable[[Piece], R], x: Tensor, dim: int) -> list[R]:
    """Call ``work`` for each of the :func:`pieces` of a map.

    On a CPU, as many threads as torch has share the pieces of a large map. If they went through
    each operation together instead, each would wait for the others after each operation; where
    other processes use the cores too, such a wait lasts a hundred times as long as an operation on
    a piece. Pieces that cannot be cut are much larger, and the threads do go through them together:
    waits are few there, and the memory for one piece is enough.

    Args:
        work (Callable): Takes the index of a piece. Nothing in it is recorded for a backward pass.
        x (Tensor): (N, ...).
        dim (int): Where to cut a sample that is too large.

    Returns:
        list: What ``work`` returned, in the order of the pieces.
    """
    threads = threads_for(x)
    if threads == 1 or x.numel() < MANY * threads * PIECE:
        return [work(piece) for piece in pieces(x, dim, threads * PIECE)]
    found = pieces(x, dim, PIECE)
    largest = x[found[0]].numel()
    if largest > MANY * PIECE or len(found) < threads:
        return [work(piece) for piece in found]
    inference = torch.is_inference_mode_enabled()
    todo, values = iter(range(len(found))), [None] * len(found)

    def take_what_is_left(_: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # neither is passed on to threads
            for i in todo:
                values[i] = work(found[i])

    list(workers(threads, os.getpid()).map(take_what_is_left, range(threads)))
    return values


def threads_for(x: Tensor) -> int:
    """The number of threads that torch spreads an operation on a tensor over."""
    return 1 if x.device.type != 'cpu' or is_compiling() else torch.get_num_threads()


@functools.lru_cache(maxsize=1)
def workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that each run their operations alone.

    Args:
        threads (int): Their number.
        process (int): The process they belong to: a fork does not inherit threads.
    """
    pool, ready = ThreadPoolExecutor(threads, 'mmkd-pieces'), Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # from now on it stays at 1, whatever is set below
        ready.wait()

    for _ in range(threads):
        pool.submit(start)
    ready.wait()
    torch.set_num_threads(threads)  # threads that others start take this number over
    return pool


def pieces(x: Tensor, dim: int, room: int) -> list[Piece]:
    """Cut a map along its batch and, where a sample alone is too large, along ``dim``.

    Args:
        x (Tensor): (N, ...). It stays whole where it is not on a CPU, or torch.compile traces.
        dim (int): The other dimension; samples that lack it stay whole.
        room (int): The number of elements that a piece should have, about.

    Returns:
        list[tuple[slice]]: The index of each piece.
    """
    if not x.numel():
        return []
    if x.device.type != 'cpu' or is_compiling():
        return [(slice(None),)]
    sample = x[0].numel()
    cuts = 1 if x.dim() <= dim else round(sample / room)
    if cuts <= 1:
        step = max(1, room // sample)
        return [(slice(n, n + step),) for n in range(0, len(x), step)]
    step = -(-x.shape[dim] // cuts)
    between = [slice(None)] * (dim - 1)
    return [
        (slice(n, n + 1), *between, slice(start, start + step))
        for n in range(len(x))
        for start in range(0, x.shape[dim], step)
    ]


_workspace = local()


def scratch(x: Tensor, number: int = 0, dtype: torch.dtype | None = None) -> Tensor | None:
    """Memory for a temporary like a piece, as ``out`` of an operation; None to let it allocate.

    It belongs to this thread and is the same in each call. New memory would take as long as the
    arithmetic, unless the C library happens to have kept some.

    Args:
        x (Tensor): The piece to imitate.
        number (int): Tells temporaries that are needed at once apart. Defaults to 0.
        dtype (torch.dtype, optional): Another type than that of ``x``. Defaults to None.
    """
    plain = type(x) is Tensor and x.device.type == 'cpu' and not is_compiling()
    if not plain or x.numel() > KEPT or x.stride()[-1:] != (1,):
        return None
    key = number, dtype or x.dtype
    kept = vars(_workspace).get(key)
    if kept is None or len(kept) < x.numel():
        with torch.inference_mode(False):  # for calls outside of it too
            kept = vars(_workspace)[key] = torch.empty(x.numel(), dtype=key[1])
    return kept[: x.numel()].view(x.shape)
