"""Reading: what a work dir tells of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd_plugin.checkpoint import CheckpointError, meta_of, read_checkpoint
from mmkd_plugin.cli import UsageError, is_distilled
from mmkd_plugin.running.checkpointing import LAST
from mmkd_plugin.words import some

#: Keys of a validation that are no scores.
NO_SCORES = ('data_time', 'time', 'step', 'iter', 'epoch')

#: Which of several scores is shown first, unless the config saves the best checkpoint by another.
MAIN = ('mIoU', 'coco/bbox_mAP', 'coco/segm_mAP', 'pascal_voc/mAP', 'accuracy/top1')

#: File with what only a running program knows, beside the log.
FACTS = 'run.json'

#: A warning of this package in a log. Those of the libraries about themselves are left out.
WARNING = re.compile(r'- WARNING - ((?:distill\.|teacher |Teacher |.*mmkd_plugin).*)')


@dataclass(frozen=True)
class Validation:
    """Scores of one validation.

    Args:
        iteration (int): After how many iterations.
        scores (dict[str, float]): Scores by their names.
    """

    iteration: int
    scores: dict[str, float]


@dataclass
class Run:
    """A run, over all the sessions in which it was trained.

    Args:
        folder (Path): Its work dir.
        cfg (Config): Its config.
        rows (list[dict[str, float]]): Logged values by iteration, with ``'iter'``.
        validations (list[Validation]): By iteration.
        facts (dict[str, Any]): Of the last session: command, plan, versions, seconds of parts.
        warnings (list[str]): Of this package, each once.
        folders (list[Path]): Of the sessions, in their order.
        done (int): Iterations that the run itself says it has done, 0 if it does not.
        ended (bool): Whether the last session came to its own end. Nothing ended it before.
    """

    folder: Path
    cfg: Config
    rows: list[dict[str, float]]
    validations: list[Validation]
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    done: int = 0
    ended: bool = False

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def is_distilled(self) -> bool:
        return is_distilled(self.cfg)

    @property
    def student(self) -> Any:
        """The config of the model that is tested."""
        return self.cfg.model.student if self.is_distilled else self.cfg.model

    @property
    def iterations(self) -> int:
        """How many iterations are done, also those after the last that is logged."""
        ends = [int(row['iter']) for row in self.rows[-1:]]
        return max([*ends, *(one.iteration for one in self.validations), self.done])

    @property
    def planned(self) -> int | None:
        """How many iterations the run has in the end, if that is known."""
        found = _train_cfg(self.cfg).get('max_iters') or self.facts.get('max_iters')
        return int(found) if found else None

    @property
    def metric(self) -> str | None:
        """Name of the score that counts, None without a validation."""
        names = dict.fromkeys(name for one in self.validations for name in one.scores)
        hook = (self.cfg.get('default_hooks') or {}).get('checkpoint') or {}
        best = hook.get('save_best')
        for wanted in ([best] if isinstance(best, str) else []) + list(MAIN):
            if wanted in names:
                return wanted
        return next(iter(names), None)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a score."""
        found = [(v.iteration, v.scores[metric]) for v in self.validations if metric in v.scores]
        return [i for i, _ in found], [score for _, score in found]

    def logged(self, key: str) -> tuple[list[int], list[float]]:
        """Iterations and values of something that is logged in training."""
        found = [(int(row['iter']), row[key]) for row in self.rows if key in row]
        return [i for i, _ in found], [value for _, value in found]

    def score(self, metric: str) -> float | None:
        """The last value of a score."""
        return next(iter(self.curve(metric)[1][-1:]), None)

    def mean(self, key: str) -> float | None:
        """The mean of something that is logged, without the first tenth of the run."""
        _, values = self.logged(key)
        values = values[len(values) // 10 :]
        return sum(values) / len(values) if values else None


def read_run(folder: str | Path) -> Run:
    """Reads a work dir.

    Args:
        folder (str | Path): A folder that a training wrote, with a ``vis_data/scalars.json`` in
            the folder of each session, or what our hook wrote of it.

    Raises:
        UsageError: If there is no such folder, or nothing is logged in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f'there is no folder {folder}; expected a work dir of tools/train.py')
    sessions = sorted(
        {file.parent.parent for file in folder.glob('*/vis_data/scalars.json')}
        | {file.parent for file in folder.glob(f'*/{FACTS}')}
    )
    if not sessions:
        inside = [one.parents[2].name for one in folder.glob('*/*/vis_data/scalars.json')]
        hint = f'; it holds the work dirs {some(sorted(set(inside)))}' if inside else ''
        raise UsageError(
            f'{folder} is not the work dir of a run: {folder}/<time>/vis_data/scalars.json is not '
            f'there{hint}'
        )
    cfg = _config_of(sessions)
    facts = [_facts_of(session) for session in sessions]
    rows: dict[int, dict[str, float]] = {}
    validations: dict[int, Validation] = {}
    for session, known in zip(sessions, facts):
        lines = list(_lines(session / 'vis_data/scalars.json'))
        trained, scored = _read_scalars(lines, known.get('validations') or [], _train_cfg(cfg))
        if not trained and not scored:
            continue
        start = min((*trained, *(v.iteration for v in scored)))
        # What an earlier session did after the checkpoint from which this one went on is lost.
        rows = {i: row for i, row in rows.items() if i < start} | trained
        validations = {i: v for i, v in validations.items() if i < start}
        validations |= {v.iteration: v for v in scored}
    if not rows and not validations and 'iterations' not in facts[-1]:
        raise UsageError(f'{folder}: nothing is logged there yet')
    run = Run(
        folder,
        cfg,
        [rows[i] for i in sorted(rows)],
        [validations[i] for i in sorted(validations)],
        next(filter(None, reversed(facts)), {}),
        list(dict.fromkeys(_warnings_of(sessions))),
        sessions,
    )
    run.done, run.ended = int(facts[-1].get('iterations') or 0), 'iterations' in facts[-1]
    if not run.ended and run.planned is not None and run.iterations < run.planned:
        run.done = _saved(folder, sessions[-1])
    return run


def _train_cfg(cfg: Config) -> Mapping[str, Any]:
    return cfg.get('train_cfg') or {}


def _read_scalars(
    lines: Sequence[Mapping[str, Any]], known: Sequence[int], train_cfg: Mapping[str, Any]
) -> tuple[dict[int, dict[str, float]], list[Validation]]:
    """Reads the rows of training by iteration, and the validations.

    mmengine logs a validation with the epoch as its step unless a config says otherwise. A run by
    iterations has the epoch 0 all the time: only the order of the lines tells when it was.

    Args:
        lines (Sequence[Mapping[str, Any]]): What a session logged.
        known (Sequence[int]): After which iterations it validated, as it noted itself.
        train_cfg (Mapping[str, Any]): How the run trains.
    """
    rows: dict[int, dict[str, float]] = {}
    found: list[tuple[int, int, dict[str, float]]] = []  # the step, the last row before, scores
    ends: dict[int, int] = {}  # the last iteration of each epoch
    last = 0
    for values in lines:
        if 'loss' in values and 'iter' in values:
            last = int(values['iter'])
            rows[last] = values
            if 'epoch' in values:
                ends[int(values['epoch'])] = last
        elif 'step' in values:
            scores = {k: v for k, v in values.items() if k not in NO_SCORES and _is_number(v)}
            if scores:
                found.append((int(values['step']), last, scores))
    if len(found) not in (len(known), len(known) + 1):  # a killed run may lack the note of the last
        known = ()
    scored: list[Validation] = []
    for number, (step, last, scores) in enumerate(found):
        before = scored[-1].iteration if scored else 0
        if number < len(known):
            iteration = int(known[number])
        elif 'max_iters' not in train_cfg and step in ends:
            iteration = ends[step]
        else:
            iteration = step or _next_validation(max(last, before + 1), train_cfg)
        scored.append(Validation(iteration, scores))
    return rows, scored


def _next_validation(iteration: int, train_cfg: Mapping[str, Any]) -> int:
    """The first iteration, from this one on, after which a run by iterations validates.

    Examples:
        >>> _next_validation(10, dict(max_iters=12, val_interval=4))
        12
    """
    interval = int(train_cfg.get('val_interval') or 0)
    if 'max_iters' not in train_cfg or 'dynamic_intervals' in train_cfg or interval < 1:
        return iteration
    return min(-(-iteration // interval) * interval, int(train_cfg['max_iters']))


def _saved(folder: Path, session: Path) -> int:
    """How many iterations the last checkpoint has that a session wrote; 0 if there is none."""
    last = folder / LAST
    try:
        name = Path(last.read_text(encoding='utf-8').strip()).name
        meta = meta_of(read_checkpoint(folder / name))
        ours = str(meta.get('experiment_name', '')).endswith(session.name)
        return int(meta['iter']) if ours else 0
    except (CheckpointError, KeyError, OSError, TypeError, ValueError):
        return 0


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    if not file.is_file():  # a run that was shorter than the interval of its log
        return
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        if isinstance(values, dict):
            yield values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _config_of(sessions: Sequence[Path]) -> Config:
    for session in reversed(sessions):
        file = session / 'vis_data/config.py'
        if file.is_file():
            return Config.fromfile(file, import_custom_modules=False)
    raise UsageError(
        f'{sessions[-1]}/vis_data/config.py is not there: a report needs the config that the '
        'LocalVisBackend of a run writes'
    )


def _facts_of(session: Path) -> dict[str, Any]:
    try:
        found = json.loads((session / FACTS).read_text(encoding='utf-8'))
    except (OSError, ValueError):  # not there, or cut
        return {}
    return found if isinstance(found, dict) else {}


def _warnings_of(sessions: Sequence[Path]) -> Iterator[str]:
    for session in sessions:
        for file in sorted(session.glob('*.log')):
            for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
                found = WARNING.search(line)
                if found:
                    yield found[1]
