"""The outcomes: one line of JSON for each config and teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.lines import read_lines
from mmkd_plugin.saving import write_text


@dataclass(frozen=True)
class Record:
    """What came out of a config.

    Args:
        config (str): The student, such as ``'mmseg::fcn/....py'``.
        teacher (str): Its teacher, or ``'sibling'``.
        outcome (str): ``'works'``; ``'trains'`` if all works but the prediction, which the student
            alone does not manage either; ``'fails'``; ``'not ours'`` if the student alone does not
            train; or ``'no model'`` if it is no segmentor and no detector that trains.
        stage (str): Where it ended.
        reason (str): Why.
        rung (str): How far the model was shrunken.
        compared (str): What is compared.
        seconds (float): Processor time of the attempt.
        model (str): A digest of its shrunken model.
        tried (str): The config of the same shrunken model that was tried for it, or itself.
    """

    config: str
    teacher: str
    outcome: str
    stage: str
    reason: str
    rung: str
    compared: str
    seconds: float
    model: str
    tried: str


def read(path: Path) -> dict[tuple[str, str], Record]:
    """Reads all lines, by config and teacher.

    Args:
        path (Path): The file; one that does not exist has no lines.

    Raises:
        UsageError: If the file cannot be read, or a line is no outcome; with its number.
    """
    return {(one.config, one.teacher): one for one in read_lines(path, Record, 'outcome')}


def write(path: Path, records: Sequence[Record]) -> None:
    """Writes all lines, in the order of their names; the file is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(asdict(one)) for one in sorted(records, key=lambda r: (r.config, r.teacher))
    ]
    write_text(path, ''.join(f'{line}\n' for line in lines))
