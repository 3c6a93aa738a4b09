"""The cache of mmcv wheels with compiled ops, one per machine and torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from setup_env.console import StepError


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Holds a lock file; the system releases it when its holders have ended, for any reason.

    Args:
        path (Path): The lock file.
        waiting (Callable): Called once a second while another process holds it.

    Yields:
        int: The file descriptor, for child processes that are to hold the lock as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(1)
        yield file.fileno()


def cache_root() -> Path:
    """Returns the cache of this machine: ``$MMKD_CACHE``, else a folder in the user's cache."""
    if os.environ.get('MMKD_CACHE'):
        return Path(os.environ['MMKD_CACHE']).expanduser().absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser().absolute() / 'mmkd'


def wheel_key(
    tag: str, platform: str, torch: str, package: str, version: str, cuda: bool = False
) -> str:
    """Names everything that compiled ops depend on.

    Examples:
        >>> wheel_key('cp311', 'linux_x86_64', '2.13.0+cpu', 'onedl-mmcv', '2.3.6')
        'cp311-linux_x86_64-torch2.13.0+cpu-onedl_mmcv2.3.6'
    """
    key = f'{tag}-{platform}-torch{torch}-{package.replace("-", "_")}{version}'
    return key + '-cuda' * cuda


class WheelCache:
    """Wheels of mmcv with compiled ops: ``<root>/wheels/<key>/<file>.whl``.

    A wheel comes into its folder by one rename once it is finished and has been read through.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def folder(self, key: str) -> Path:
        """Where the wheel of a key belongs."""
        return self.root / 'wheels' / key

    def work(self, key: str) -> Path:
        """Where it is built."""
        return self.root / 'build' / key

    def find(self, key: str) -> Path | None:
        """The finished wheel of a key, if there is one."""
        wheels = sorted(self.folder(key).glob('*.whl'))
        return next((wheel for wheel in wheels if has_ops(wheel)), None)

    def publish(self, key: str, wheel: Path) -> Path:
        """Moves a finished wheel into the cache.

        Raises:
            StepError: If the wheel is broken or holds no compiled ops.
        """
        if not has_ops(wheel):
            raise StepError(
                f'{wheel.name} was built without mmcv._ext',
                f'Delete {self.work(key)} and run the same command again.',
            )
        final = self.folder(key) / wheel.name
        final.parent.mkdir(parents=True, exist_ok=True)
        wheel.replace(final)
        return final


def has_ops(wheel: Path) -> bool:
    """Whether a wheel is whole and contains the compiled ``mmcv._ext``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            return any(re.match(r'mmcv/_ext[^/]*\.(so|pyd)$', n) for n in names)
    except (OSError, zipfile.BadZipFile):
        return False


def build_jobs() -> int:
    """Returns the number of compilers: one for each core and 2 GB of memory."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(cores, memory // 2**31))
