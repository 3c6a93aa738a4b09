"""Schedules that do not fit the length of a run, named before it starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim.scheduler import (
    ConstantParamScheduler,
    CosineAnnealingParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    PolyParamScheduler,
    ReduceOnPlateauParamScheduler,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

#: Loops whose length is known.
KNOWN = (EpochBasedTrainLoop, IterBasedTrainLoop)


class Length(NamedTuple):
    """The length of a run as a schedule counts it.

    Args:
        count (int): How many there are.
        unit (str): Of what: ``'iterations'`` or ``'epochs'``.
        each (int): What one of them is in the numbers of the schedule. Defaults to 1; an epoch of a
            schedule by epochs that was converted to iterations has more.
    """

    count: int
    unit: str
    each: int = 1


class CheckSchedules(Hook):
    """Warns of schedules that do not fit the length of a run, before its first iteration."""

    def before_train(self, runner: Runner) -> None:
        if not is_main_process() or not isinstance(runner.train_loop, KNOWN):
            return
        for place, scheduler, config in _placed(runner):
            text = _unfit_in(runner, scheduler, config)
            if text:
                print_log(f'{place}: {text}', logger='current', level=logging.WARNING)


def _placed(runner: Runner) -> Iterator[tuple[str, Any, Any]]:
    """The schedules of a run: their places in the config, themselves, and their configs."""
    built, config = runner.param_schedulers or [], runner.cfg.get('param_scheduler') or []
    several = built.items() if isinstance(built, Mapping) else [('', built)]
    for name, schedulers in several:
        here = f'param_scheduler.{name}'.rstrip('.')
        theirs = config.get(name, config) if isinstance(config, Mapping) else config
        theirs = theirs if isinstance(theirs, Sequence) else [theirs] * len(schedulers)
        for number, scheduler in enumerate(schedulers):
            one = theirs[number] if number < len(theirs) else None
            yield f'{here}[{number}]', scheduler, one


def _unfit_in(runner: Runner, scheduler: Any, config: Any) -> str | None:
    """What does not fit of one schedule in a run, if anything."""
    if isinstance(scheduler, ReduceOnPlateauParamScheduler):  # goes by a measure
        return None
    if scheduler.by_epoch:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return (
                f'{type(scheduler).__name__} goes by epochs, and '
                f'{type(runner.train_loop).__name__} counts none, so it changes nothing; write '
                'by_epoch=False, and its numbers in iterations'
            )
        return unfit(scheduler, Length(runner.max_epochs, 'epochs'))
    converted = isinstance(config, Mapping) and config.get('convert_to_iter_based', False)
    if converted:
        each = len(runner.train_dataloader)
        return unfit(scheduler, Length(runner.max_iters // each, 'epochs', each))
    return unfit(scheduler, Length(runner.max_iters, 'iterations'))


def unfit(scheduler: Any, run: Length) -> str | None:
    """What of a schedule does not fit the length of a run.

    Args:
        scheduler (_ParamScheduler): The schedule.
        run (Length): The length of the run, in its unit.

    Returns:
        str | None: A sentence about it, None if it fits.
    """
    kind = type(scheduler).__name__
    begin, end = scheduler.begin // run.each, scheduler.end // run.each
    whole = f'and the run has {run.count}'
    if begin >= run.count:
        return (
            f'{kind} begins after {begin} {run.unit}, {whole}, so it changes nothing; write a '
            'smaller `begin`'
        )
    if isinstance(scheduler, MultiStepParamScheduler):
        steps = sorted(one // run.each for one in scheduler.milestones)
        if steps and steps[0] >= run.count:
            return (
                f'{kind} has milestones={steps}, {whole} {run.unit}, so it changes nothing; write '
                'smaller ones'
            )
        return None
    if _warms_up(scheduler) and end > run.count:
        return (
            f'{kind} warms up for {end - begin} {run.unit}, {whole}, so the rate of optim_wrapper '
            f'is never reached; write end={begin + max((run.count - begin) // 10, 2)}, say'
        )
    key, last = 'end', end
    if isinstance(scheduler, CosineAnnealingParamScheduler):
        key, last = 'T_max', begin + scheduler.T_max // run.each
    if _comes_down(scheduler) and last > run.count:
        right = run.count - (begin if key == 'T_max' else 0)
        return f'{kind} comes down until {last} {run.unit}, {whole}; write {key}={right}'
    return None


def _warms_up(scheduler: Any) -> bool:
    if isinstance(scheduler, LinearParamScheduler):
        return scheduler.start_factor < scheduler.end_factor
    if isinstance(scheduler, ConstantParamScheduler):
        return scheduler.factor < 1
    return 'Warmup' in type(scheduler).__name__


def _comes_down(scheduler: Any) -> bool:
    if isinstance(scheduler, LinearParamScheduler):
        return scheduler.start_factor > scheduler.end_factor
    return isinstance(scheduler, (CosineAnnealingParamScheduler, PolyParamScheduler))
