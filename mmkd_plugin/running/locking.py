"""One training in a work dir: a lock that the system releases when the process ends, however."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Name of the file in a work dir that a training locks.
LOCK = '.lock'


class InUseError(OSError):
    """Another process trains in a work dir; the message names both."""


@contextmanager
def alone_in(work_dir: str | Path) -> Iterator[None]:
    """Keeps other trainings out of a work dir while the block runs.

    The lock is of this process alone: processes that load data for it do not prolong it. Where the
    system or the file system has no locks, nothing is kept out.

    Args:
        work_dir (str | Path): The folder, which exists.

    Raises:
        InUseError: If another process trains in it.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, alone_in(folder):
        ...     pass
    """
    if fcntl is None:
        yield
        return
    # Not `flock`: it lasts until each process that inherited the file has ended.
    with Path(work_dir, LOCK).open('a+', encoding='utf-8') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read().strip() or 'another process'
                raise InUseError(
                    f'--work-dir {work_dir}: {owner} trains in it already; wait until it has '
                    'ended, or take another --work-dir'
                ) from error
        else:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}')
            file.flush()
        yield
