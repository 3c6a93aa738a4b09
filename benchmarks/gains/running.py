"""One run of a table: trained with ``tools/train.py``, scored with the metric of its config."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

from mmengine.config import Config

from benchmarks.gains.plan import Run, find, needs
from benchmarks.gains.records import Record
from benchmarks.gains.settings import digest, run_config, test_split
from benchmarks.gains.split import share_of
from benchmarks.gains.tables import ROOT, SCORES, TASKS, Table
from benchmarks.gains.training import (
    TOOLS,
    Processes,
    RunError,
    Used,
    Watch,
    alone,
    follow,
    last_checkpoint,
    scalars,
    train,
    used_so_far,
)
from mmkd_plugin.cli import is_distilled
from mmkd_plugin.paraphrasing import FILE_NAME, has_teacher_connector
from mmkd_plugin.saving import replacing, write_text
from mmkd_plugin.version import __version__

#: How the one line of a training ends whose loss was no longer finite.
DIVERGED = re.compile(r'error: .* at iteration \d+.*Lower the learning rate')


@dataclass
class Place:
    """Where runs happen.

    Args:
        work_dir (Path): Folders of the runs.
        environment (dict[str, str]): Variables of their processes.
        processes (Processes): Where these are noted.
    """

    work_dir: Path
    environment: dict[str, str]
    processes: Processes = field(default_factory=Processes)

    @property
    def device(self) -> str:
        """``'cuda'`` if the processes may use a GPU, else ``'cpu'``."""
        return 'cuda' if self.environment.get('CUDA_VISIBLE_DEVICES') else 'cpu'


def teacher_file(table: Table, work_dir: Path, seed: int = 0) -> Path:
    """The checkpoint of the teacher of a table with a seed, once it is trained."""
    assert table.teacher is not None
    name = table.teacher.stem + (f'_seed{seed}' if seed else '')
    return work_dir / table.data.name / f'{name}.pth'


def perform(run: Run, records: Sequence[Record], place: Place, watch: Watch) -> Record:
    """Trains and scores; a run that was cut off goes on.

    Args:
        run (Run): All of it is known, and the runs that it needs are finished.
        records (Sequence[Record]): The finished runs.
        place (Place): Where it happens.
        watch (Watch): Is told how far it is.

    Returns:
        Record: What it was and what came out. Its checkpoints are gone, but for the teacher's.

    Raises:
        RunError: If it fails.
    """
    table, (config, cfg) = run.table, settle(run, place)
    score, split, iterations = SCORES[table.task], test_split(cfg), cfg.train_cfg.max_iters
    folder = place.work_dir / table.data.name / table.student.stem / run.method
    folder /= f'{"" if run.weight is None else f"{run.weight}_".replace(":", "-")}seed{run.seed}'
    folder = folder.with_name(f'{folder.name}_{digest(cfg)}')
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / 'record.json'
    if note.exists():  # killed after that, and before the record was with the others
        if run.method != 'teacher' or teacher_file(table, place.work_dir, run.seed).exists():
            return finished(folder, Record(**json.loads(note.read_text(encoding='utf-8'))))
        shutil.rmtree(folder)  # somebody has removed the teacher
        folder.mkdir()
    cfg.report = False  # the page of all runs takes its place
    write_text(folder / 'config.py', cfg.pretty_text)
    used, scores = train_and_score(run, cfg, folder, place, watch)
    memory = [value for _, value in scalars(folder, 'memory', needs='loss')]
    time = used.seconds if place.device == 'cuda' else used.cpu_seconds
    logged = [value for _, value in scalars(folder, 'time', needs='loss')]
    if used.lost and logged:  # then what is logged is all that is known
        used.seconds = time = fmean(logged) * iterations
    others = {r.method: find(r, records) for r in reversed(needs(run))}  # the first teacher's
    record = Record(
        data=table.data.name,
        split=split,
        task=table.task,
        student=table.student.stem,
        method=run.method,
        config=name_of(config),
        purpose=run.purpose,
        weight=run.weight,
        seed=run.seed,
        length=run.length,
        metric=score.title,
        score=scores[split],
        val_score=scores['val'],
        student_score=others['student'].score if 'student' in others else None,
        teacher_score=others['teacher'].score if 'teacher' in others else None,
        seconds=round(used.seconds, 1),
        step_seconds=round(time / iterations, 5),
        peak_mb=round(max(memory) if memory else used.peak_mb, 1),
        iterations=iterations,
        device=place.device,
        date=datetime.now(timezone.utc).date().isoformat(),
        version=version(),
    )
    write_text(note, json.dumps(asdict(record)))
    return finished(folder, record)


def finished(folder: Path, record: Record) -> Record:
    """Removes the checkpoints of a run whose record is kept."""
    for file in folder.rglob('*.pth'):
        file.unlink()
    return record


def train_and_score(
    run: Run, cfg: Config, folder: Path, place: Place, watch: Watch
) -> tuple[Used, dict[str, float | None]]:
    """Trains in a folder that has the config, and scores the last checkpoint on each split.

    Returns:
        tuple[Used, dict[str, float | None]]: The time and memory of it, and the scores on ``val``
        and on the split that counts; None if the training diverged.

    Raises:
        RunError: If it fails in another way.
    """
    score, before = SCORES[run.table.task], Used()
    if run.method in run.table.cached:
        write_cache(run, folder / 'config.py', place, watch)
    scores: dict[str, float | None] = dict.fromkeys(('val', test_split(cfg)))
    settings = dict(environment=place.environment, processes=place.processes)
    try:
        if is_distilled(cfg) and any(map(has_teacher_connector, cfg.model.distill.values())):
            before = stage_before(folder, watch, settings)
        used = train(folder / 'config.py', folder, [], watch, **settings)
        checkpoint = last_checkpoint(folder)
        for name in scores:
            points = scalars(folder, score.metric) if name == 'val' else []
            value = points[-1][1] if points else test(folder, checkpoint, cfg, name, place)
            scores[name] = round(value * score.percent, 4)
        if run.method == 'teacher':
            with replacing(teacher_file(run.table, place.work_dir, run.seed)) as (beside,):
                shutil.copyfile(checkpoint, beside)
    except RunError as error:
        if not DIVERGED.search(str(error)):
            raise
        used, scores = used_so_far(folder), dict.fromkeys(scores)
    return used + before, scores


def settle(run: Run, place: Place) -> tuple[Path, Config]:
    """The config file that a run starts from, and all settings of the run."""
    table = run.table
    plain = {'teacher': table.teacher, 'student': table.student, 'longer': table.student}
    config = plain.get(run.method) or {**table.recipes, **table.few}[run.method]
    cache = None
    if run.method in table.cached:
        cache = cache_folder(run, place.work_dir) / 'cache'
    teachers = [
        (table.teacher, teacher_file(table, place.work_dir, seed))
        for seed in range(table.taught.get(run.method, 0))
    ]
    return config, run_config(
        config,
        seed=run.seed,
        length=run.length,
        weight=run.weight,
        teachers=teachers,
        labels=share_of(run.purpose),
        cache=cache,
        augment=table.data.augment,
    )


def cache_folder(run: Run, work_dir: Path) -> Path:
    """Where the cache of a method lies, which all its seeds share."""
    return work_dir / run.table.data.name / 'caches' / f'{run.table.student.stem}_{run.method}'


def write_cache(run: Run, config: Path, place: Place, watch: Watch) -> None:
    """Writes the cache of a run with ``tools/cache_teacher.py``, unless it is there.

    The time it took is noted beside it, and is no part of the run: other runs read it too.

    Raises:
        RunError: If it fails.
    """
    folder = cache_folder(run, place.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    options = [*run.table.cached[run.method], '--workers', '1']
    command = [
        sys.executable, '-u', '-W', 'ignore', str(TOOLS / 'cache_teacher.py'), str(config),
        '--out', str(folder / 'cache'), *options,
    ]  # fmt: skip
    log, notes = folder / 'cache.log', folder / 'cache.json'
    with alone(folder, place.processes) as lock:
        code, last, used = follow(command, log, watch, place.environment, place.processes, lock)
        if code:
            raise RunError(f'the end of {log}:\n  ' + '\n  '.join(last))
        if not notes.exists():
            write_text(notes, json.dumps(asdict(used)))


def stage_before(folder: Path, watch: Watch, settings: dict) -> Used:
    """Trains the paraphrasers, unless they are there; returns what it has used."""
    if not (folder / FILE_NAME).exists():
        train(folder / 'config.py', folder, ['--paraphraser'], watch, name='before', **settings)
    return used_so_far(folder, 'before')


def test(folder: Path, checkpoint: Path, cfg: Config, split: str, place: Place) -> float:
    """Scores a checkpoint with ``tools/test.py`` on a split.

    Raises:
        RunError: If it fails.
    """
    config, out = folder / f'{split}.py', folder / f'score_{split}'
    cfg = Config(cfg.to_dict())
    if split == 'val':
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    write_text(config, cfg.pretty_text)
    command = [
        sys.executable, '-u', '-W', 'ignore', str(TOOLS / 'test.py'), str(config), str(checkpoint),
        '--work-dir', str(out),
    ]  # fmt: skip
    log = folder / f'score_{split}.log'
    code, last, _ = follow(command, log, lambda *_: None, place.environment, place.processes)
    if code:
        raise RunError(f'the end of {log}:\n  ' + '\n  '.join(last))
    newest = max(out.glob('*/*.json'))
    return read_score(json.loads(newest.read_text()), TASKS[cfg.default_scope])


def read_score(found: dict[str, float], task: str) -> float:
    """The score among the metrics of an evaluation.

    A detector that finds nothing scores 0: mmdet's metric then returns nothing at all.
    """
    if task == 'detection' and not any(key.startswith('coco/') for key in found):
        return 0.0
    return found[SCORES[task].metric]


def name_of(config: Path) -> str:
    """A config as readers find it: from the root of the repository, if it lies there."""
    path = config.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def version() -> str:
    """Version of the package, with the commit where there is a repository."""
    command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    try:
        commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f'{__version__}+{commit}'
