"""Files that are whole or not there: written beside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: Ending of a file that is still being written. One that a killed process left is overwritten.
BESIDE = '.tmp'


class WriteError(OSError):
    """A file that could not be written; the message names it and the reason."""


@contextmanager
def replacing(*paths: str | Path) -> Iterator[list[Path]]:
    """Lends a file beside each path, which takes the path's place when the block ends well.

    If the block or the disk fails, the paths are as they were. The first path is renamed last, so
    if it is there, all of them are.

    Args:
        *paths (str | Path): The files to write; their folders are made.

    Raises:
        WriteError: If a file cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, replacing(Path(folder, 'a.txt')) as (beside,):
        ...     _ = beside.write_text('whole')
    """
    finals = [Path(path) for path in paths]
    try:
        with _replacing(finals) as besides:
            yield besides
    except WriteError:
        raise
    except OSError as error:
        names = ', '.join(map(str, finals))
        raise WriteError(f'{names} could not be written: {error.strerror or error}') from error


@contextmanager
def _replacing(finals: list[Path]) -> Iterator[list[Path]]:
    for path in finals:
        path.parent.mkdir(parents=True, exist_ok=True)
    besides = [path.with_name(path.name + BESIDE) for path in finals]
    with ExitStack() as leftovers:
        for beside in besides:
            leftovers.callback(beside.unlink, missing_ok=True)
        yield besides
        for beside in besides:
            _flush(beside)
        for beside, path in zip(reversed(besides), reversed(finals)):
            beside.replace(path)
        leftovers.pop_all()
    for folder in {path.parent for path in finals}:
        _flush(folder)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file that is whole or not there.

    Args:
        path (str | Path): The file; an older one is replaced.
        text (str): Its content, which is written as UTF-8.
    """
    with replacing(path) as (beside,):
        beside.write_text(text, encoding='utf-8')


def _flush(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == 'nt':  # Windows opens no folder
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
