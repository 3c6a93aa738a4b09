"""Measuring: calls that take turns in one process, what a call would need, the machine."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

#: The shortest time that is measured, seconds; shorter calls are repeated.
SHORTEST = 0.02
MOST_ROUNDS = 25
#: What to measure: time that passes, or time that the threads of this process spend together.
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, low, high)


@dataclass
class Rounds:
    """What was measured of one case.

    Args:
        group (str): The loss, or the pair of models.
        case (str): The size.
        seconds (dict[str, list[float]]): For each variant, one number per round.
        notes (dict[str, str]): Why a variant was not measured.
        extra (dict[str, float]): Further numbers by name.
    """

    group: str
    case: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)

    def time(self, variant: str) -> Spread | None:
        """Seconds of one call."""
        values = self.seconds.get(variant)
        return Spread.of(values) if values else None

    def ratio(self, slow: str, fast: str) -> Spread | None:
        """How many times as long ``slow`` took, from the ratio in each round."""
        a, b = self.seconds.get(slow), self.seconds.get(fast)
        return Spread.of([x / y for x, y in zip(a, b)]) if a and b else None

    def fastest(self, variants: Sequence[str]) -> str | None:
        """Which of some variants took least."""
        there = [variant for variant in variants if self.seconds.get(variant)]
        return min(there, key=lambda v: self.time(v).median) if there else None


def synchronize(device: torch.device) -> None:
    """Waits for what was started on an accelerator."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
    least_rounds: int = 3,
) -> dict[str, list[float]]:
    """Measures calls round after round, so that what else the machine does falls on all of them.

    Args:
        calls (Mapping): By the name of the variant; each has run before.
        device (torch.device): Where they run.
        budget (float): Seconds after which no round is begun.
        clock (Callable): One of :data:`CLOCKS`. Defaults to that of the wall.
        least_rounds (int): Rounds that are done whatever they take. Defaults to 3.

    Returns:
        dict[str, list[float]]: Seconds of each variant in each round.
    """

    def seconds(call: Callable[[], Any], repeats: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(repeats):
            call()
        synchronize(device)
        return (clock() - start) / repeats

    found: dict[str, list[float]] = {name: [] for name in calls}
    names, begin, repeats = list(calls), time.perf_counter(), {}
    for number in range(MOST_ROUNDS):
        if number >= least_rounds and time.perf_counter() - begin > budget:
            break
        gc.collect()
        gc.disable()
        try:
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name not in repeats:
                    once = seconds(calls[name], 1)
                    repeats[name] = max(1, math.ceil(SHORTEST / max(once, 1e-7)))
                again = number or repeats[name] > 1
                found[name].append(seconds(calls[name], repeats[name]) if again else once)
        finally:
            gc.enable()
    return found


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once, of those made inside.

    What an operator allocates and frees within itself does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        given = {
            StorageWeakRef(x.untyped_storage())
            for x in tree_flatten((args, kwargs))[0]
            if isinstance(x, torch.Tensor)
        }
        for x in tree_flatten(out)[0]:
            if isinstance(x, torch.Tensor):
                ref = StorageWeakRef(x.untyped_storage())
                if ref not in given:
                    self.alive.setdefault(ref, x.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return int(next(x for x in lines if x.startswith('MemAvailable')).split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def usable_bytes(device: torch.device) -> int:
    """Four fifths of what is free on a GPU, half of what is free in main memory."""
    return int(free_bytes(device) * (0.8 if device.type == 'cuda' else 0.5))


def failed(error: Exception) -> str:
    """What a note says of an error: the first line of its message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f'failed: {lines[0][:120]}'


def load() -> str:
    """How many processes wanted a core in the last minute, of how many there are."""
    try:
        return f'{os.getloadavg()[0]:.1f} of {os.cpu_count()}'
    except OSError:
        return 'unknown'


def describe_machine(device: torch.device) -> dict[str, str]:
    """The machine, without its name and without paths."""
    info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    fields = dict(
        (part.strip() for part in line.split(':', 1)) for line in info.splitlines() if ':' in line
    )
    flags = set(fields.get('flags', '').split())
    telling = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'avx512_fp16')
    has_bf16 = {'amx_bf16', 'avx512_bf16'} & flags
    described = {
        'CPU': fields.get('model name', platform.processor() or platform.machine()),
        'cores': str(os.cpu_count()),
        'threads': str(torch.get_num_threads()),
        'flags': ', '.join(flag for flag in telling if flag in flags) or 'unknown',
        'bf16 arithmetic': (
            'AMX' if 'amx_bf16' in flags else 'AVX-512 BF16, no AMX' if has_bf16 else 'none'
        ),
        'memory': f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30:.0f} GiB',
    }
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        described['GPU'] = f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'
        described['CUDA'] = str(torch.version.cuda)
    return {
        **described,
        'torch': torch.__version__,
        'Python': '.'.join(map(str, sys.version_info[:3])),
        'system': platform.system(),
    }


@dataclass
class Footprint:
    """Bytes of one case.

    Args:
        group (str): The loss, or the pair of models.
        case (str): The size.
        allowed (int): What the target allows.
        saved (dict[str, int]): Kept from forward to backward, by variant.
        peak (dict[str, int]): The most that was allocated at once, beside what was there before.
        notes (dict[str, str]): Why a variant was not measured.
        parts (dict[str, int]): What ``allowed`` is made of.
    """

    group: str
    case: str
    allowed: int = 0
    saved: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
