"""Schedule: when a term of the distillation is on, and with which factor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmkd_plugin.annotations import check_arguments
from mmkd_plugin.building import check_keys
from mmkd_plugin.words import short

CURVES = {
    'linear': lambda t: t,
    'cosine': lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    'exp': lambda t: math.exp(-5 * (1 - t) ** 2),  # FRSKD and mean teachers; 0.0067 at 0
}


@dataclass(frozen=True)
class Schedule:
    """The factor of a term's loss during training: 0, a ramp, 1, and 0 again.

    It depends on the counters of the runner alone, so a resumed run has the same factors.

    Args:
        start (int): First iteration (or epoch) at which the term is on. Defaults to 0.
        stop (int, optional): First iteration (or epoch) at which the term is off again. Defaults to
            None: it stays on.
        ramp (int): Number of iterations (or epochs) from ``start`` until the factor is 1. Defaults
            to 0: the factor is 1 from ``start`` on.
        curve (str): Shape of the ramp: ``'linear'``, ``'cosine'``, or ``'exp'`` for
            ``exp(-5 (1 - t)^2)`` with t from 0 to 1 (Laine and Aila, 2017). Defaults to
            ``'linear'``.
        by_epoch (bool): Whether the numbers are epochs. Defaults to False: iterations.

    Raises:
        ValueError: If the numbers contradict each other or the curve is unknown.

    Examples:
        >>> from mmkd_plugin import Schedule
        >>> schedule = Schedule(start=100, ramp=200)
        >>> [schedule.factor(n) for n in (0, 100, 200, 300, 5000)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """

    start: int = 0
    stop: int | None = None
    ramp: int = 0
    curve: str = 'linear'
    by_epoch: bool = False

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self), 'schedule')
        if self.start < 0 or self.ramp < 0:
            raise ValueError(f'start and ramp cannot be negative, got {self.start} and {self.ramp}')
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f'stop ({self.stop}) must come after start ({self.start})')
        if self.curve not in CURVES:
            raise ValueError(f'curve must be one of {", ".join(CURVES)}, got {self.curve!r}')

    @classmethod
    def from_config(cls, here: str, config: Any) -> Schedule:
        """Builds a schedule from a dict of its arguments.

        Args:
            here (str): Place in the config, for messages.
            config (dict, optional): The arguments. None and ``{}`` mean always on.

        Returns:
            Schedule: The schedule.

        Raises:
            ValueError: If a key is unknown or a value cannot be used.
        """
        config = {} if config is None else config
        if not isinstance(config, dict):
            raise ValueError(f'{here}: expected dict(start=..., ramp=...), got {short(config)}')
        check_keys(here, config, inspect.signature(cls).parameters)
        check_arguments(cls, config, here)
        try:
            return cls(**config)
        except ValueError as error:
            raise ValueError(f'{here}: {error}') from error

    def factor(self, position: int) -> float:
        """Returns the factor at an iteration, or at an epoch if ``by_epoch``.

        Args:
            position (int): Current iteration (or epoch), counted from 0.

        Returns:
            float: Between 0 (off) and 1.
        """
        if position < self.start or (self.stop is not None and position >= self.stop):
            return 0.0
        if position >= self.start + self.ramp:
            return 1.0
        return CURVES[self.curve]((position - self.start) / self.ramp)

    @property
    def counter(self) -> str:
        """The counter of the runner that it depends on, ``'iter'`` or ``'epoch'``."""
        return 'epoch' if self.by_epoch else 'iter'

    def is_over(self, position: int) -> bool:
        """Returns whether the term stays off from a position on.

        Args:
            position (int): Iteration (or epoch), counted from 0.

        Returns:
            bool: True from ``stop`` on.
        """
        return self.stop is not None and position >= self.stop

    def never_on(self, length: int) -> bool:
        """Returns whether a run ends before the term starts.

        Args:
            length (int): Number of iterations (or epochs) of the run.

        Returns:
            bool: True if the run does not reach ``start``.
        """
        return length <= self.start

    def __str__(self) -> str:
        unit = 'epoch' if self.by_epoch else 'iteration'
        if self == Schedule(by_epoch=self.by_epoch):
            return 'always'
        text = f'from {unit} {self.start}'
        if self.stop is not None:
            text += f' to {self.stop}'
        return text + (f', {self.curve} ramp over {self.ramp}' if self.ramp else '')


def check_come_on(schedules: Mapping[str, Schedule], lengths: Mapping[str, Any]) -> None:
    """Refuses schedules that do not begin before the run ends.

    Args:
        schedules (Mapping[str, Schedule]): By what messages call them.
        lengths (Mapping[str, Any]): ``max_iters`` and ``max_epochs`` of the run; one that is
            missing or None is not known.

    Raises:
        ValueError: If one of them never comes on.
    """
    for name, schedule in schedules.items():
        unit = f'{schedule.counter}s'
        length = lengths.get(f'max_{unit}')
        if length is not None and schedule.never_on(length):
            raise ValueError(
                f'{name} never comes on: its schedule is "{schedule}" and the '
                f'run has {length} {unit}'
                + ('; a run by iterations has one epoch' if unit == 'epochs' else '')
                + f'; `start` must be below {length}'
            )


def check_meet(schedules: Mapping[str, Schedule], lengths: Mapping[str, Any]) -> None:
    """Refuses schedules that leave iterations (or epochs) in which nothing is on.

    Schedules by iterations cannot be compared with others by epochs; those are left to the run. So
    is the end of a run of unknown length.

    Args:
        schedules (Mapping[str, Schedule]): By what messages call them.
        lengths (Mapping[str, Any]): As for :func:`check_come_on`.

    Raises:
        ValueError: If there is a gap. The message says where.
    """
    every = schedules.values()
    counters = {schedule.counter for schedule in every}
    if len(counters) != 1:
        return
    (unit,) = counters
    length = lengths.get(f'max_{unit}s')
    end = max(one.start for one in every) + 1 if length is None else length
    edges = {0, *(one.start for one in every), *(one.stop for one in every if one.stop is not None)}
    for edge in sorted(edges):
        if edge < end and not any(schedule.factor(edge) for schedule in every):
            told = ', '.join(f'the schedule of {k} is "{one}"' for k, one in schedules.items())
            where = 'iteration' if unit == 'iter' else unit
            raise ValueError(f'nothing is learnt in {where} {edge}: {told}; let them meet')
