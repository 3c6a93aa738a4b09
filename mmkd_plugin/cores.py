"""The processor cores that other programs leave to this one."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

STAT = Path('/proc/stat')
QUOTA = Path('/sys/fs/cgroup/cpu.max')

ENOUGH = 0.75
"""A core counts as free if it is idle for this share of the time."""


@dataclass(frozen=True)
class Cores:
    """The cores that this program may use, at one moment.

    Args:
        count (int): How many they are.
        quota (float): How many of them its container grants; infinite without a limit.
        busy (float): Seconds that they have worked so far, summed over them. 0 where the system
            does not tell.
        passed (float): Seconds that have passed, summed over them. 0 where the system does not
            tell.
        own (float): Seconds that they have worked for this program.
    """

    count: int
    quota: float
    busy: float
    passed: float
    own: float

    @classmethod
    def now(cls) -> Cores:
        """Looks at them now."""
        try:
            cores = os.sched_getaffinity(0)
        except AttributeError:  # not on macOS
            cores = set(range(os.cpu_count() or 1))
        busy, passed = times_in(_text_of(STAT), cores)
        quota = quota_in(_text_of(QUOTA))
        return cls(len(cores), quota, busy, passed, sum(os.times()[:4]))


def times_in(stat: str, cores: Collection[int]) -> tuple[float, float]:
    """Reads how long cores have worked, and how long they have run.

    Args:
        stat (str): The text of ``/proc/stat``.
        cores (Collection[int]): Their numbers.

    Returns:
        tuple[float, float]: Both in seconds, summed over the cores. Time that a virtual machine's
        host has taken counts as work.

    Examples:
        >>> times_in('cpu  0 0 0 0\\ncpu0 100 0 200 700 0 0 0 0\\n', {0})
        (3.0, 10.0)
    """
    busy = passed = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name[:3] == 'cpu' and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, idle, waiting, *rest = map(int, fields[:8])
            busy += user + nice + system + sum(rest)
            passed += user + nice + system + idle + waiting + sum(rest)
    ticks = os.sysconf('SC_CLK_TCK')
    return busy / ticks, passed / ticks


def quota_in(text: str) -> float:
    """Reads how many cores a container grants, from the text of ``cpu.max``.

    Examples:
        >>> quota_in('150000 100000'), quota_in('max 100000')
        (1.5, inf)
    """
    quota, _, period = text.strip().partition(' ')
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def free_cores(before: Cores, after: Cores) -> float:
    """Tells how many cores other programs have left to this one between two moments.

    Args:
        before (Cores): At the first moment.
        after (Cores): At the second.

    Examples:
        >>> start = Cores(count=2, quota=math.inf, busy=50, passed=100, own=5)
        >>> free_cores(start, Cores(count=2, quota=math.inf, busy=53, passed=104, own=6))
        1.0
    """
    passed = after.passed - before.passed
    others = (after.busy - before.busy) - (after.own - before.own)
    load = min(1.0, max(0.0, others / passed)) if passed > 0 else 0.0
    return min(after.quota, after.count * (1 - load))


def threads_for(free: float, wanted: int) -> int:
    """The number of threads that free cores can carry, from 1 to what is wanted.

    Threads that share a core wait for each other at the end of each operation.

    Args:
        free (float): Cores that are free, as :func:`free_cores` tells.
        wanted (int): The most threads.

    Examples:
        >>> threads_for(1.1, wanted=2), threads_for(1.8, wanted=2), threads_for(0.2, wanted=2)
        (1, 2, 1)
    """
    return max(1, min(wanted, math.floor(free + 1 - ENOUGH)))


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ''
