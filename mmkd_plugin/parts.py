"""Parts: how long the parts of a step take, in the iterations that are measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named parts while it runs; else it costs nothing.

    An accelerator is waited for at both ends of a part, so few steps should be measured.

    Examples:
        >>> watch = Stopwatch()
        >>> with watch.part('student'):  # it does not run
        ...     pass
        >>> watch.start()
        >>> with watch.part('student'):
        ...     pass
        >>> [*watch.stop()]
        ['student']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] | None = None

    def start(self) -> None:
        """Begins to measure."""
        self._seconds = {}

    def stop(self) -> dict[str, float]:
        """Ends to measure.

        Returns:
            dict[str, float]: Seconds of each part since the start; empty if it did not run.
        """
        found, self._seconds = self._seconds, None
        return found or {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures what is inside.

        Args:
            name (str): Name of the part. Parts of the same name are added up.
        """
        seconds = self._seconds
        if seconds is None:
            yield
            return
        start = now()
        yield
        seconds[name] = seconds.get(name, 0.0) + now() - start


def now() -> float:
    """The time in seconds, once the accelerator has done all that it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


#: Measures the forward of a Distiller.
STEP = Stopwatch()
