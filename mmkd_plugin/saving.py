"""Files and folders that are whole or not there: written beside, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two runs at once into one folder go unnoticed there
    fcntl = None

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
            if beside.is_symlink():  # it would be written through
                beside.unlink()
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


@contextmanager
def whole_folder(out: str | Path, marker: str) -> Iterator[Path]:
    """Lends ``<out>.partial`` for writing, which becomes ``out`` when the block ends well.

    What an interrupted run left there is deleted. A folder of that name without the marker is
    somebody else's and stays. The marker goes last: a run that is killed at the very end leaves it
    in ``out``, which is whole.

    Args:
        out (str | Path): A folder that does not exist or is empty.
        marker (str): Name of the file that says who writes the partial folder.

    Raises:
        FileExistsError: If the partial folder is somebody else's, or another run writes to it.
        OSError: If ``out`` is no longer empty at the end, or cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, whole_folder(Path(folder, 'a'), '.me') as partial:
        ...     _ = (partial / 'b.txt').write_text('whole')
    """
    out = Path(out).resolve()
    partial = out.with_name(out.name + '.partial')
    mark = partial / marker
    others = partial.exists() and not mark.is_file()
    if partial.is_symlink() or (others and (partial.is_file() or any(partial.iterdir()))):
        raise FileExistsError(
            f'{partial} is in the way and not from this tool; move it or change --out.'
        )
    partial.mkdir(parents=True, exist_ok=True)
    with mark.open('a') as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(
                    f'Another run is writing to {partial}; wait for it.'
                ) from None
        leftovers = [path for path in partial.iterdir() if path != mark]
        if leftovers:
            print(f'Replacing what an interrupted run left in {partial}')
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield partial
        for path in (*partial.rglob('*'), partial):
            _flush(path)
        if out.exists():
            out.rmdir()  # fails unless it is still empty, and then the marker stays
        if fcntl is None:
            lock.close()  # Windows moves no folder with an open file
        partial.replace(out)
        _flush(out.parent)
        Path(out, marker).unlink()


def _flush(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == 'nt':  # Windows opens no folder
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked(file: str | Path) -> Iterator[str | None]:
    """Holds a lock while the block runs; the system releases it when the process ends, however.

    The lock is of this process alone: processes that load data for it do not prolong it. Where the
    system or the file system has no locks, the block runs without.

    Args:
        file (str | Path): A file for nothing else; it stays.

    Yields:
        str | None: The process that holds the lock already, None if it is this one now.

    Raises:
        WriteError: If the file is a link, behind which something else may lie.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, locked(Path(folder, '.lock')) as owner:
        ...     print(owner)
        None
    """
    if fcntl is None:
        yield None
        return
    owner = None
    # Not `flock`: it lasts until each process that inherited the file has ended.
    if Path(file).is_symlink():
        raise WriteError(f'{file} is a link, and nothing is written through it; remove it')
    with Path(file).open('a+', encoding='utf-8') as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                stream.seek(0)
                owner = stream.read().strip() or 'another process'
        else:
            stream.truncate(0)
            stream.write(f'process {os.getpid()} on {socket.gethostname()}')
            stream.flush()
        yield owner
