"""Whole checkpoints: mmengine's CheckpointHook with files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmkd_plugin.running.best import name_best
from mmkd_plugin.saving import BESIDE, WriteError, replacing, write_text

#: Folder in the work dir in which mmengine writes what is renamed afterwards.
STAGING = '.saving'
LAST = 'last_checkpoint'

#: Methods of a CheckpointHook that save.
SAVING = ('after_train_iter', 'after_train_epoch', 'after_val_epoch')


class SavingError(OSError):
    """A checkpoint that could not be written; the message says what is left and what to do."""


def save_whole(hook: CheckpointHook, runner: Runner, before: Callable[[], None]) -> None:
    """Makes a CheckpointHook write whole files, and remove an old one after the new one is there.

    mmengine removes first and writes in place, so that a process that is killed meanwhile may leave
    nothing to go on from.

    Args:
        hook (CheckpointHook): The hook, after its own ``before_train``. It is changed.
        runner (Runner): Its runner.
        before (Callable): Called in each process before a checkpoint is written.
    """
    backend = getattr(hook, 'file_backend', None)
    if backend is None or isinstance(backend, _RemovingLater):
        return
    if is_main_process():
        _remove_leftovers(Path(hook.out_dir), Path(runner.work_dir))
    hook.file_backend = _RemovingLater(backend)
    name_best(hook)
    for name in SAVING:
        setattr(hook, name, partial(_save_whole, hook, getattr(hook, name), before))


def _save_whole(
    hook: CheckpointHook,
    method: Callable[..., None],
    before: Callable[[], None],
    runner: Runner,
    *args: Any,
    **kwargs: Any,
) -> None:
    saving = _Saving(runner, hook.file_backend, before)
    method(saving, *args, **kwargs)
    saving.finish()


class _Saving:
    """A runner as a CheckpointHook sees it while it saves."""

    def __init__(self, runner: Runner, backend: _RemovingLater, before: Callable[[], None]) -> None:
        self._runner, self._backend, self._before = runner, backend, before
        self._saved = False
        self._staging = Path(runner.work_dir, STAGING)
        self.work_dir = str(self._staging)  # a CheckpointHook writes `last_checkpoint` in there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves beside and renames; to another kind of storage as mmengine does."""
        self._saved = True
        self._before()
        self._backend.keep(f'{out_dir}/{filename}')
        save, local = self._runner.save_checkpoint, '://' not in str(out_dir)
        if is_main_process():
            self._staging.mkdir(parents=True, exist_ok=True)
        if not (local and is_main_process() and isinstance(self._runner, Runner)):
            save(out_dir, filename, *args, **kwargs)
            return
        try:
            with replacing(Path(out_dir, filename)) as (beside,):
                save(out_dir, beside.name, *args, **kwargs)
        except WriteError as error:
            raise SavingError(
                f'{error}. The checkpoints before it are whole; make room and go on with --resume'
            ) from error

    def finish(self) -> None:
        """Points to the new checkpoint, then removes the old one."""
        if not self._saved:
            return
        written = self._staging / LAST
        if is_main_process() and written.is_file():
            text = written.read_text()
            write_text(Path(self._runner.work_dir, LAST), text)
        self._backend.remove_now()
        if is_main_process() and self._staging.is_dir():
            written.unlink(missing_ok=True)
            self._staging.rmdir()


class _RemovingLater:
    """A file backend of mmengine that notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: dict[str, Callable[[str], None]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._waiting[os.path.normpath(path)] = self._backend.remove

    def rmtree(self, path: str) -> None:
        self._waiting[os.path.normpath(path)] = self._backend.rmtree

    def keep(self, path: str) -> None:
        """What is saved again under its old name is not removed."""
        self._waiting.pop(os.path.normpath(path), None)

    def remove_now(self) -> None:
        while self._waiting:
            path, remove = self._waiting.popitem()
            remove(path)


def _remove_leftovers(*folders: Path) -> None:
    """Removes what a killed process was writing."""
    for folder in set(folders):
        for file in folder.glob(f'*.pth{BESIDE}'):
            file.unlink()
        if (folder / STAGING).is_symlink():
            (folder / STAGING).unlink()
        elif (folder / STAGING).is_dir():
            for file in (folder / STAGING).iterdir():
                file.unlink()
            (folder / STAGING).rmdir()
