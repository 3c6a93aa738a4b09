"""One training in a work dir: a lock that the system releases when the process ends, however."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmkd_plugin.saving import locked

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
    with locked(Path(work_dir, LOCK)) as owner:
        if owner is not None:
            raise InUseError(
                f'--work-dir {work_dir}: {owner} trains in it already; wait until it has ended, or '
                'take another --work-dir'
            )
        yield
