"""The best checkpoint: a score that validation calls otherwise does not end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmkd_plugin.words import did_you_mean, some

KEY = 'default_hooks.checkpoint.save_best'


def name_best(hook: CheckpointHook) -> None:
    """Lets a CheckpointHook find a score by another spelling, and go on without one.

    mmengine raises a KeyError at the first validation, hours into a run.

    Args:
        hook (CheckpointHook): It is changed.
    """
    hook._save_best_checkpoint = partial(_save_best, hook, hook._save_best_checkpoint, set())


def _save_best(
    hook: CheckpointHook,
    save: Callable[..., None],
    told: set[str],
    runner: Runner,
    metrics: Mapping[str, Any],
) -> None:
    scores = dict(metrics)
    for key in getattr(hook, 'key_indicators', None) or ():
        if key in metrics or key == 'auto':
            continue
        meant = spelt_otherwise(key, metrics)
        scores[key] = None if meant is None else metrics[meant]  # mmengine passes over None
        if key not in told:
            told.add(key)
            lost = f', so no best checkpoint is kept by it{did_you_mean(key, metrics)}'
            print_log(
                f'{KEY}={key!r}: validation gives {some(metrics)}'
                + (lost if meant is None else f'; `{meant}` is taken'),
                logger='current',
                level=logging.WARNING,
            )
    save(runner, scores)


def spelt_otherwise(key: str, known: Iterable[str]) -> str | None:
    """The one known name that differs from a key in capitals, or in what stands before a slash.

    Args:
        key (str): What the config says.
        known (Iterable[str]): The names of the scores.

    Examples:
        >>> spelt_otherwise('mIou', ['aAcc', 'mIoU'])
        'mIoU'
        >>> spelt_otherwise('bbox_mAP', ['coco/bbox_mAP'])
        'coco/bbox_mAP'
    """
    for plain in (str.lower, lambda name: name.lower().rpartition('/')[2]):
        found = [name for name in known if plain(name) == plain(key)]
        if found:
            return found[0] if len(found) == 1 else None
    return None
