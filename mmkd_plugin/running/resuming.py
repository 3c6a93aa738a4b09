"""Resuming: the newest checkpoint of a work dir that is whole, and the state of a run in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log

from mmkd_plugin.checkpoint import CheckpointError, read_checkpoint
from mmkd_plugin.running.checkpointing import LAST
from mmkd_plugin.running.run_state import wrong_parts
from mmkd_plugin.saving import write_text
from mmkd_plugin.words import some

_NAMES = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


class Found(NamedTuple):
    """A checkpoint to go on from.

    Args:
        path (str): The file.
        content (dict): What it holds.
    """

    path: str
    content: dict[str, Any]


def newest_checkpoint(work_dir: str | Path, others: Iterable[str | Path] = ()) -> Found | None:
    """The newest checkpoint of a run that reads whole.

    A warning names the newer ones that do not. What ``last_checkpoint`` says is not needed, because
    a process may have been killed before it wrote it.

    Args:
        work_dir (str | Path): Folder of the run.
        others (Iterable[str | Path]): Further folders in which it may have saved. Defaults to
            ``()``.

    Returns:
        Found | None: The checkpoint, or None if nothing was saved yet.

    Raises:
        ValueError: If there are checkpoints, and none can be read.
    """
    named = _last_named(Path(work_dir))
    files = _candidates([Path(work_dir), *map(Path, others)], named)
    problems: list[str] = []
    for file in files:
        try:
            content = read_checkpoint(file)
            check_run_state(content, file)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        if problems:
            print_log(
                f'--resume: going on from {file}, which is not the newest file: '
                f'{some(problems, limit=3, separator="; ")}',
                logger='current',
                level=logging.WARNING,
            )
        return Found(str(file), content)
    if named and '://' in named:
        return Found(named, read_checkpoint(named))
    if named:
        problems = problems or [f'{LAST} in {work_dir} names {named}, which is not there']
        raise CheckpointError(
            f'nothing in {work_dir} can be resumed: {some(problems, limit=3, separator="; ")}. To '
            'start anew, take another --work-dir, or leave --resume out'
        )
    if problems:
        print_log(
            f'--resume: starting anew, because the first save was cut short: '
            f'{some(problems, limit=3, separator="; ")}',
            logger='current',
            level=logging.WARNING,
        )
    return None


def point_to(found: Found, work_dir: str | Path) -> None:
    """Has ``last_checkpoint`` name a checkpoint, if a killed process left it behind.

    Args:
        found (Found): The newest checkpoint.
        work_dir (str | Path): Folder of the run.
    """
    if _last_named(Path(work_dir)) != found.path:
        write_text(Path(work_dir, LAST), found.path)


def _last_named(work_dir: Path) -> str:
    """What ``last_checkpoint`` says, or '' if it is not there, or was cut short."""
    try:
        text = (work_dir / LAST).read_text(encoding='utf-8').strip()
    except (OSError, ValueError):
        return ''
    return text if text.isprintable() else ''


def _candidates(folders: list[Path], named: str) -> list[Path]:
    """Files that may be checkpoints of a run, the newest first."""
    number = {
        file: int(_NAMES.fullmatch(file.name)[1])
        for folder in dict.fromkeys(folders)
        if folder.is_dir()
        for file in folder.iterdir()
        if _NAMES.fullmatch(file.name) and file.is_file()
    }
    last = None
    if named and '://' not in named:
        # The work dir may have been renamed or copied since.
        name = Path(named).name
        last = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if last is None and not number and Path(named).is_file():
            last = Path(named)
    if last is not None:
        number.setdefault(last, max(number.values(), default=0))  # of another name
    time = {file: file.stat().st_mtime_ns for file in number}

    def newest_first(file: Path) -> tuple:
        # Of a run before this one in the same folder: higher numbers, but older.
        of_another_run = (
            last is not None and number[file] > number[last] and time[file] < time[last]
        )
        return of_another_run, -number[file], -time[file]

    return sorted(number, key=newest_first)


# The state of a run -------------------------------------------------------------------------------


def check_run_state(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Checks that a checkpoint holds the state of a training run, as mmengine saves it.

    Args:
        checkpoint (Mapping[str, Any]): As :func:`read_checkpoint` returns it.
        path (str | Path): Its name in errors.

    Raises:
        ValueError: If it does not.
    """
    if not {'meta', 'message_hub'} <= set(checkpoint):
        raise CheckpointError(
            f'{path} holds weights, but not the state of a training run, so it cannot be resumed: '
            f'start from it with --cfg-options load_from={path}'
        )
    wrong = wrong_parts(checkpoint)
    if wrong:
        raise CheckpointError(
            f'{path}: the state of the run in it is damaged ({some(wrong, limit=3)}), so it cannot '
            f'be resumed: start from its weights with --cfg-options load_from={path}'
        )


def check_unfinished(
    checkpoint: Mapping[str, Any], path: str | Path, train_cfg: Mapping[str, Any]
) -> None:
    """Checks that a run is no longer than it shall be; says so if nothing is left to train.

    Args:
        checkpoint (Mapping[str, Any]): As :func:`check_run_state` accepts it.
        path (str | Path): Its name in errors.
        train_cfg (Mapping[str, Any]): ``train_cfg`` of the config.

    Raises:
        ValueError: If the run is longer.
    """
    for key, counter in (('max_iters', 'iter'), ('max_epochs', 'epoch')):
        length, done = train_cfg.get(key), checkpoint['meta'][counter]
        if not isinstance(length, int) or done < length:
            continue
        text = (
            f'--resume: nothing is left to train: {path} has {counter} {done}, and '
            f'`train_cfg.{key}` is {length}; a larger one goes on'
        )
        if done > length:
            raise CheckpointError(text)
        # No error: a job that restarts itself may have been cut off after its last save.
        print_log(text, logger='current', level=logging.WARNING)


def use_seed(checkpoint: Mapping[str, Any], cfg: Any) -> None:
    """Has a run without a seed of its own take that of its checkpoint, for the order of images.

    Args:
        checkpoint (Mapping[str, Any]): As :func:`check_run_state` accepts it.
        cfg (Config): The config of the run, changed in place.
    """
    seed, randomness = checkpoint['meta'].get('seed'), cfg.get('randomness') or {}
    if type(seed) is int and randomness.get('seed') is None:
        cfg.randomness = {**randomness, 'seed': seed}
