"""A training with ``tools/train.py``, followed line by line; the demo and the tables share it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmkd_plugin.saving import write_text

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
STEP = re.compile(r'Iter\(train\) +\[ *(\d+)/(\d+)\].* loss: ([\d.]+|nan|inf)')

#: Told the iterations that are done, all of them, and the loss.
Watch = Callable[[int, int, float], None]


class RunError(Exception):
    """A step failed; the message says what to do."""


@dataclass
class Used:
    """What a training has used so far, over all its parts.

    Args:
        seconds (float): Wall time. Defaults to 0.
        cpu_seconds (float): Processor time of the process and its workers. Defaults to 0.
        peak_mb (float): The largest memory of its process, in MB. Defaults to 0.
        lost (bool): Whether a part is missing, because this program was killed during it. Defaults
            to False.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    lost: bool = False

    def __add__(self, other: Used) -> Used:
        return Used(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_mb, other.peak_mb),
            self.lost or other.lost,
        )


class Processes:
    """The processes of this program that run now, to end them together."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def start(self, command: Sequence[str], **settings: object) -> subprocess.Popen:
        """Starts one.

        Raises:
            RunError: If all were ended already.
        """
        if self.stopped:
            raise RunError('stopped')
        process = subprocess.Popen(command, **settings)
        self.running.add(process)
        if self.stopped:  # between the two lines above
            process.terminate()
        return process

    def stop(self) -> None:
        """Ends all, and lets no other start."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()


def make_digit_scenes() -> None:
    """Writes ``data/digit_scenes``, or checks what is there.

    Raises:
        RunError: If it fails.
    """
    if subprocess.run([sys.executable, str(TOOLS / 'make_digit_scenes.py')]).returncode:
        raise RunError('the data could not be made; the lines above say why')


def train(
    config: Path,
    folder: Path,
    arguments: Sequence[str],
    watch: Watch,
    *,
    name: str = 'train',
    environment: dict[str, str] | None = None,
    processes: Processes | None = None,
) -> Used:
    """Trains with ``tools/train.py``; a run that was cut off goes on from its last checkpoint.

    Args:
        config (Path): The config.
        folder (Path): Its work dir.
        arguments (Sequence[str]): More of the tool's arguments.
        watch (Watch): Is told how far it is.
        name (str): Of the files that keep its output and :class:`Used`. Defaults to ``'train'``.
        environment (dict, optional): Variables to set. Defaults to None.
        processes (Processes, optional): Where its process is noted. Defaults to None.

    Returns:
        Used: What it has used, earlier parts included.

    Raises:
        RunError: If it fails, with the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes, log = folder / f'{name}.json', folder / f'{name}.log'
    command = [
        sys.executable, '-u', '-W', 'ignore', str(TOOLS / 'train.py'), str(config),
        '--work-dir', str(folder), '--resume', *arguments,
    ]  # fmt: skip
    processes = processes or Processes()
    with alone(folder, processes) as lock:
        before = used_so_far(folder, name)
        write_text(
            notes, json.dumps(asdict(replace(before, lost=True)))
        )  # if killed before the end
        code, last, used = follow(command, log, watch, environment, processes, lock)
        used = before + used
        write_text(notes, json.dumps(asdict(used)))
    if code:
        raise RunError(f'the end of {log}:\n  ' + '\n  '.join(last))
    return used


def used_so_far(folder: Path, name: str = 'train') -> Used:
    """What a training has used until now, from the note that :func:`train` keeps."""
    notes = folder / f'{name}.json'
    return Used(**json.loads(notes.read_text())) if notes.exists() else Used()


@contextmanager
def alone(folder: Path, processes: Processes) -> Iterator[int]:
    """Holds a folder; waits while a training that outlived its parent is still writing there."""
    with (folder / 'lock').open('w') as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if processes.stopped:
                    raise RunError('stopped') from None
                time.sleep(1)
        yield file.fileno()


def follow(
    command: Sequence[str],
    log: Path,
    watch: Watch,
    environment: dict[str, str] | None,
    processes: Processes,
    lock: int | None = None,
) -> tuple[int, Sequence[str], Used]:
    """Runs a command, copies its output to a log and tells how far it is.

    The command inherits the lock, so it holds its folder even if this process is killed.

    Returns:
        tuple: Its exit code, its last lines and what it has used.
    """
    start = time.monotonic()
    last: deque[str] = deque(maxlen=15)
    with log.open('a', buffering=1) as file:
        process = processes.start(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
            pass_fds=() if lock is None else (lock,),
        )
        try:
            for line in process.stdout:
                file.write(line)
                if line.strip():
                    last.append(line.rstrip())
                if step := STEP.search(line):
                    watch(int(step[1]), int(step[2]), float(step[3]))
        finally:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            processes.running.discard(process)
    unit = 1 if sys.platform == 'darwin' else 1024
    used = Used(
        time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6
    )
    return process.returncode, last, used


def scalars(folder: Path, name: str, needs: str = 'step') -> list[tuple[int, float]]:
    """Reads what a run has logged under a name, by iteration; later parts replace earlier ones.

    Args:
        folder (Path): The work dir.
        name (str): Such as ``'mIoU'``.
        needs (str): Another name that must be in the same line. Defaults to ``'step'``.
    """
    points: dict[int, float] = {}
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            if name in values and needs in values:
                points[values['step']] = values[name]
    return sorted(points.items())


def last_checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return Path((folder / 'last_checkpoint').read_text().strip())
