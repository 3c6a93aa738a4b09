"""Ends a save at any of its file operations, as ``kill -9`` or a full disk does."""

from __future__ import annotations

import builtins
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class Killed(BaseException):
    """The process is dead: nothing that it would do afterwards happens."""


class Steps:
    """Counts operations on files below a folder; ends the process at one, or copies the folder.

    Args:
        folder (Path): What is watched.
        at (int): The operation that is not reached; 0 for none.
        copies (Path, optional): Where to copy the folder at each operation, as a process that is
            killed there leaves it. Defaults to None.
    """

    def __init__(self, folder: Path, at: int = 0, copies: Path | None = None) -> None:
        self.folder, self.at, self.copies, self.names = str(folder), at, copies, []

    def step(self, what: str, path: Any) -> None:
        if not str(path).startswith(self.folder):
            return
        self.names.append(f'{what} {Path(path).name}')
        if self.copies is not None:
            shutil.copytree(self.folder, self.copies / str(len(self.names)))
        if 0 < self.at <= len(self.names):
            raise Killed(self.names[-1])


class _File:
    """A file that is written in two halves."""

    def __init__(self, file: Any, path: Any, steps: Steps) -> None:
        self._file, self._path, self._steps = file, path, steps

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._steps.step('half written', self._path)
        self._file.write(data[half:])
        self._file.flush()
        self._steps.step('written', self._path)
        return len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def watched(steps: Steps, suffixes: tuple[str, ...]) -> Iterator[None]:
    """Watches files whose names contain one of some words while the block runs."""
    real_open = builtins.open

    def ours(path: Any) -> bool:
        return isinstance(path, (str, Path)) and any(s in Path(path).name for s in suffixes)

    def opened(path: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
        if not ours(path) or not set(mode) & set('wax+'):
            return real_open(path, mode, *args, **kwargs)
        steps.step('before opening', path)
        file = _File(real_open(path, mode, *args, **kwargs), path, steps)
        steps.step('opened', path)
        return file

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if ours(path):
                steps.step(f'before {name}', path)
            result = real(path, *args, **kwargs)
            if ours(path):
                steps.step(f'after {name}', path)
            return result

        return call

    names = ('rename', 'replace', 'remove', 'unlink')
    wrappers = {name: wrapped(name) for name in names}
    wrappers['fsync'] = lambda number: None  # takes most of the time, and changes no content
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(builtins, 'open', opened))
        patches.enter_context(mock.patch.object(io, 'open', opened))  # that of pathlib
        patches.enter_context(mock.patch.multiple(os, **wrappers))
        yield


@contextmanager
def full_disk(size: int = 1024) -> Iterator[None]:
    """Lets the system refuse to make files larger than some bytes, as ``ulimit -f`` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
