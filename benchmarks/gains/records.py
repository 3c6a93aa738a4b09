"""The finished runs: one line of JSON each."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.lines import read_lines
from mmkd_plugin.saving import write_text


@dataclass(frozen=True)
class Record:
    """A finished run.

    Args:
        data (str): The data set.
        split (str): Where ``score`` was measured, ``'val'`` or ``'test'``.
        task (str): ``'segmentation'`` or ``'detection'``.
        student (str): Name of the student's config.
        method (str): The recipe; ``'teacher'``, ``'student'`` or ``'longer'`` are those alone.
        config (str): The config, from the root of the repository.
        purpose (str): ``'counted'``, or ``'trial'`` for one of the trials that choose a weight;
            ``'labels:0.1'`` and ``'labels:0.1:trial'`` with this part of the labels.
        weight (float | str, optional): The loss weight of each term: a number, ``'auto'``,
            ``'auto:0.3'``, or ``'recipe'`` for those of the recipe; None for runs without a recipe.
        seed (int): Its seed.
        length (float): Its iterations, in multiples of the recipe's.
        metric (str): The score's name.
        score (float, optional): In percent; None if the training diverged.
        val_score (float, optional): The same on the validation split.
        student_score (float, optional): That of the student alone with the same seed.
        teacher_score (float, optional): That of the teacher, if there is one.
        seconds (float): Wall time of the training.
        step_seconds (float): Time of an iteration, everything included: processor time on a CPU,
            which other programs use too, wall time on a GPU. Of a run during which the program
            was killed, the wall time that the training has logged.
        peak_mb (float): The largest memory of the process; on a GPU that of the GPU. In MB.
        iterations (int): Iterations of the training.
        device (str): ``'cpu'`` or ``'cuda'``.
        date (str): Day of the run.
        version (str): Version of the code.
    """

    data: str
    split: str
    task: str
    student: str
    method: str
    config: str
    purpose: str
    weight: float | str | None
    seed: int
    length: float
    metric: str
    score: float | None
    val_score: float | None
    student_score: float | None
    teacher_score: float | None
    seconds: float
    step_seconds: float
    peak_mb: float
    iterations: int
    device: str
    date: str
    version: str


def read(path: Path) -> list[Record]:
    """Reads all lines.

    Args:
        path (Path): The file; one that does not exist has no lines.

    Raises:
        UsageError: If the file cannot be read, or a line is no record; with its number.
    """
    return read_lines(path, Record, 'finished run')


def append(path: Path, record: Record) -> None:
    """Adds a line; the file is whole at any moment, and other programs may add theirs.

    Args:
        path (Path): The file; it is made if need be.
        record (Record): The finished run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the file itself is replaced, so it holds no lock
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = path.read_text(encoding='utf-8') if path.exists() else ''
        write_text(path, f'{before}{json.dumps(asdict(record))}\n')
    finally:
        os.close(folder)
