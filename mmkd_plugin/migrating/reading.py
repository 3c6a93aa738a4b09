"""A file of another program, read as what it compares."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.migrating.cirkd import read_command
from mmkd_plugin.migrating.distillation import Distillation
from mmkd_plugin.migrating.distillers import read_distiller, read_own_values
from mmkd_plugin.migrating.mmrazor import read_distillation
from mmkd_plugin.migrating.mmyolo import PREFIX

#: The endings of files that are no checkpoints.
SUFFIXES = ('.py', '.sh')


def read_file(
    source: Path, student: str | None = None, teacher: str | None = None
) -> tuple[Distillation, Config]:
    """Reads a config of MMRazor, MMYOLO, mmdetection-distiller, FGD or MGD, or a script of CIRKD.

    Args:
        source (Path): The file, ``.py`` or ``.sh``.
        student (str, optional): The config of the student in the place of the one that is named.
        teacher (str, optional): The same of the teacher.

    Returns:
        tuple[Distillation, Config]: What it does, and the config of the run.

    Raises:
        UsageError: If it is none of them.
        NotPossible: If a part of it has no counterpart here.
    """
    if not source.is_file():
        raise UsageError(f'there is no file {source}')
    if source.suffix == '.sh':
        return read_command(source.read_text(encoding='utf-8'), student, teacher)
    values = read_own_values(source)
    if values is not None:
        return read_distiller(values, student, teacher)
    cfg = read_config(str(source))
    of_mmyolo = str((cfg.model.get('architecture') or {}).get('cfg_path')).startswith(PREFIX)
    found = read_distillation(cfg)
    found.student, found.teacher = student or found.student, teacher or found.teacher
    return found, read_config(found.student) if of_mmyolo else cfg
