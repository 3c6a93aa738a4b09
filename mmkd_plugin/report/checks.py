"""Checks: what a reader should notice in a run, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mmkd_plugin.report.reading import Run
from mmkd_plugin.report.standing import Standing

#: Part of a step that loading data should not exceed.
LOADING = 0.3

#: Part of a step from which a teacher is worth a cache.
TEACHING = 0.4

#: Steps that have to be measured before their cost leads to an advice.
MEASURED = 3

#: Share of the gradient of a term that is small, and that is large.
SMALL, LARGE = 0.01, 100

#: Part of the whole rise of a score that its last fifth may have if it has settled.
RISING = 0.15


@dataclass(frozen=True)
class Finding:
    """Something to notice.

    Args:
        good (bool): Whether it is as it should be.
        text (str): What it is.
        advice (str): What to do. Defaults to ''.
    """

    good: bool
    text: str
    advice: str = ''


def findings(run: Run, standing: Standing | None) -> list[Finding]:
    """Looks at a run.

    Args:
        run (Run): The run.
        standing (Standing, optional): Its scores beside those of student and teacher.

    Returns:
        list[Finding]: First what is wrong, in the order of its weight.
    """
    found = [one for check in CHECKS for one in check(run, standing)]
    return sorted(found, key=lambda one: one.good)


def finite(run: Run, standing: Standing | None) -> Iterator[Finding]:
    for row in run.rows:
        for key, value in row.items():
            if 'loss' in key and not math.isfinite(value):
                yield Finding(
                    False,
                    f'{key} was {value} at iteration {int(row["iter"])}.',
                    'Lower the learning rate, add gradient clipping, or train without AMP.',
                )
                return


def ended(run: Run, standing: Standing | None) -> Iterator[Finding]:
    if not run.ended and run.planned is not None and run.iterations < run.planned:
        yield Finding(
            False,
            f'The run has {run.iterations} of {run.planned} iterations.',
            'Go on with the same command and --resume.',
        )


def gained(run: Run, standing: Standing | None) -> Iterator[Finding]:
    if standing is None or standing.gain is None:
        return
    text = f'{standing.metric} is {standing.gain:+.2f} against the student alone'
    if standing.gain > 0:
        share = '' if standing.share is None else f', {standing.share:.0%} of the gap'
        yield Finding(True, f'{text}{share}. One seed says little about a small gain.')
    else:
        yield Finding(
            False,
            f'{text}.',
            "Take loss_weight='auto', another method (docs/choosing.md), or a longer training.",
        )


def gap(run: Run, standing: Standing | None) -> Iterator[Finding]:
    if standing is None or standing.alone is None or standing.teacher is None:
        return
    left = standing.teacher.value - standing.alone.value
    if left <= 0:
        yield Finding(
            False,
            f'The teacher has {left:+.2f} {standing.metric} against the student alone.',
            'It has nothing to teach there: take a better teacher, or look whether its classes '
            'and its preprocessing are right.',
        )


def settled(run: Run, standing: Standing | None) -> Iterator[Finding]:
    if run.metric is None:
        return
    iterations, scores = run.curve(run.metric)
    if len(scores) < 3:
        return
    best = max(range(len(scores)), key=scores.__getitem__)
    late = next(i for i, when in enumerate(iterations) if when >= 0.8 * iterations[-1])
    rise, last = scores[-1] - scores[0], scores[-1] - scores[max(late - 1, 0)]
    if scores[best] - scores[-1] > max(0.02 * abs(scores[best]), 1e-9):
        yield Finding(
            False,
            f'{run.metric} was {scores[best]:.2f} at iteration {iterations[best]}, and is '
            f'{scores[-1]:.2f} at the end.',
            f"Keep the best with default_hooks.checkpoint.save_best='{run.metric}', or train "
            'for a shorter time.',
        )
    elif rise > 0 and last > RISING * rise:
        yield Finding(
            False,
            f'{run.metric} still rises: {last:+.2f} in the last fifth of the run.',
            'A longer training gives more.',
        )


def taught(run: Run, standing: Standing | None) -> Iterator[Finding]:
    for name in terms_of(run):
        _, values = run.logged(f'distill.{name}.loss')
        if values and not any(values):
            yield Finding(
                False,
                f'The loss of {name} was 0 all the time.',
                'Look at its taps and its schedule in the plan below.',
            )
        share = run.mean(f'distill.{name}.share')
        if share is None:
            continue
        if share < SMALL or share > LARGE:
            told = 'next to nothing' if share < SMALL else 'nearly everything'
            yield Finding(
                False,
                f"The gradient of {name} is {share:.2g} of the task's: it teaches {told}.",
                f'Set distill.{name}.loss.loss_weight=dict(auto=2.5).',
            )
        else:
            yield Finding(True, f"The gradient of {name} is {share:.2g} of the task's.")


def loaded(run: Run, standing: Standing | None) -> Iterator[Finding]:
    data, step = run.mean('data_time'), run.mean('time')
    if data is None or not step:
        return
    part = data / step
    if part > LOADING:
        yield Finding(
            False,
            f'{part:.0%} of a step waits for data.',
            'Give train_dataloader.num_workers more, or pin_memory=True and '
            'persistent_workers=True.',
        )


def paid(run: Run, standing: Standing | None) -> Iterator[Finding]:
    parts: Mapping[str, float] = run.facts.get('parts') or {}
    whole = sum(parts.values())
    enough = run.facts.get('measured_steps', 0) >= MEASURED
    if enough and whole and parts.get('teachers', 0) / whole > TEACHING:
        yield Finding(
            False,
            f'The teachers take {parts["teachers"] / whole:.0%} of a step.',
            'tools/cache_teacher.py runs them once, and stores what they say.',
        )


def warned(run: Run, standing: Standing | None) -> Iterator[Finding]:
    for text in run.warnings:
        yield Finding(False, text)


#: In the order of their weight.
CHECKS: tuple[Callable[[Run, Standing | None], Iterator[Finding]], ...] = (
    finite,
    ended,
    gained,
    gap,
    taught,
    warned,
    settled,
    loaded,
    paid,
)


def terms_of(run: Run) -> list[str]:
    """The names of the terms of a run."""
    return list(run.cfg.model.get('distill') or {}) if run.is_distilled else []
