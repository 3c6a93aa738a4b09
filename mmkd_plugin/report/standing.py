"""Standing: a run between its student alone and its teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from mmkd_plugin.checkpoint import CheckpointError, read_checkpoint
from mmkd_plugin.cli import UsageError
from mmkd_plugin.report.reading import Run, read_run
from mmkd_plugin.teachers.configs import teacher_configs

#: Where mmengine keeps the scores of the validations in a checkpoint.
SCORES = 'val/'


@dataclass(frozen=True)
class Score:
    """A score, and where it comes from.

    Args:
        value (float): The score.
        source (str): A file, a folder or an argument.
    """

    value: float
    source: str


@dataclass(frozen=True)
class Standing:
    """A distilled run between its student alone and its teacher.

    Args:
        metric (str): Name of the score.
        distilled (float): Score of the run.
        alone (Score, optional): Of the student alone.
        teacher (Score, optional): Of the best of its teachers.
    """

    metric: str
    distilled: float
    alone: Score | None = None
    teacher: Score | None = None

    @property
    def gain(self) -> float | None:
        """What distillation added."""
        return None if self.alone is None else self.distilled - self.alone.value

    @property
    def share(self) -> float | None:
        """The gain over the gap between student and teacher; None if there is no gap.

        Examples:
            >>> Standing('mIoU', 60.0, Score(50.0, ''), Score(70.0, '')).share
            0.5
        """
        if self.alone is None or self.teacher is None or self.teacher.value <= self.alone.value:
            return None
        return self.gain / (self.teacher.value - self.alone.value)


def standing_of(
    run: Run, others: Sequence[Run], alone: float | None = None, teacher: float | None = None
) -> Standing | None:
    """Compares a distilled run with its student alone and with its teacher.

    Args:
        run (Run): The run.
        others (Sequence[Run]): Other runs. One without a teacher whose model is that of the
            student, and one that saved the checkpoint of the teacher, are found among them.
        alone (float, optional): Score of the student alone, if no run tells it.
        teacher (float, optional): Score of the teacher, if neither a run nor its checkpoint tells
            it.

    Returns:
        Standing | None: None if the run is not distilled, or has no score.
    """
    metric = run.metric
    if not run.is_distilled or metric is None:
        return None
    return Standing(
        metric,
        run.score(metric),
        Score(alone, '--alone') if alone is not None else _alone(run, others, metric),
        Score(teacher, '--teacher') if teacher is not None else _teacher(run, others, metric),
    )


def _alone(run: Run, others: Sequence[Run], metric: str) -> Score | None:
    for other in others:
        score = other.score(metric)
        if not other.is_distilled and score is not None and _same(other.student, run.student):
            return Score(score, str(other.folder))
    return None


def _same(one: Any, other: Any) -> bool:
    """Whether two configs are of the same model, whatever weights it starts with."""
    return _model(one) == _model(other)


def _model(config: Any) -> Any:
    if isinstance(config, dict):
        items = {k: _model(v) for k, v in config.items()}
        return {
            k: v
            for k, v in items.items()
            if k not in ('init_cfg', 'pretrained', 'data_preprocessor', '_scope_') and v is not None
        }
    return [_model(v) for v in config] if isinstance(config, (list, tuple)) else config


def _teacher(run: Run, others: Sequence[Run], metric: str) -> Score | None:
    found = [
        score
        for config in teacher_configs(run.cfg.model.get('teacher') or {}).values()
        if isinstance(config.get('checkpoint'), str)
        and (score := _score_of(config, others, metric)) is not None
    ]
    return max(found, key=lambda one: one.value, default=None)


def _score_of(config: ConfigDict, others: Sequence[Run], metric: str) -> Score | None:
    """The score of a teacher: in the log of the run that saved it, else in its checkpoint."""
    checkpoint = Path(config['checkpoint'])
    if not checkpoint.is_file():
        return _logged(checkpoint, others, metric)
    folder = checkpoint.resolve().parent
    if not any(folder == other.folder.resolve() for other in others):
        with suppress(UsageError):  # the file lies elsewhere
            others = [*others, read_run(folder)]
    return _logged(checkpoint, others, metric) or _kept(checkpoint, metric)


def _logged(checkpoint: Path, runs: Sequence[Run], metric: str) -> Score | None:
    """The score at the iteration in the name of a checkpoint, else the last, of its run."""
    for run in runs:
        if checkpoint.resolve().parent == run.folder.resolve():
            number = re.search(r'iter_(\d+)$', checkpoint.stem)
            scores = dict(zip(*run.curve(metric)))
            score = scores.get(int(number[1]) if number else None, run.score(metric))
            return None if score is None else Score(score, str(run.folder))
    return None


def _kept(checkpoint: Path, metric: str) -> Score | None:
    """The last score before a checkpoint was saved; a published one has lost it."""
    try:
        hub = read_checkpoint(checkpoint).get('message_hub') or {}
        return Score(float(hub['log_scalars'][f'{SCORES}{metric}'].current()), str(checkpoint))
    except (AttributeError, CheckpointError, KeyError, TypeError, ValueError):
        return None
