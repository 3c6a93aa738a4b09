"""Output for the user: progress, and failures with advice."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

HINTS = [
    # First, because pip ends a failed download with "no matching distribution" as well.
    (
        r'Connection ?(Error|refused|reset|aborted|broken)|failure in name|timed out|Max retries|'
        r'Network is unreachable|IncompleteRead|SSLError|ProxyError|from versions: none',
        'The network failed, or the package index knows no such package. Check the network, the '
        "proxy and pip's settings, and run the same command again.",
    ),
    (
        r'No matching distribution|Could not find a version|Requires-Python',
        'This version does not exist for this Python. Choose another Python (PYTHON=python3.11 '
        'VENV=.venv311) or another torch (TORCH="torch==...").',
    ),
    (
        r'ResolutionImpossible|conflicting dependencies',
        'The packages contradict each other. If VENV is an environment of your own, nothing in it '
        'is replaced: let VENV=... name a folder that does not exist yet.',
    ),
    (
        r'No space left|Disk quota',
        'The disk is full: free some GB (TMPDIR=... and MMKD_CACHE=... move the temporary files '
        'and the wheel cache) and run the same command again.',
    ),
    (
        r'\bKilled\b|out of memory|cannot allocate|internal compiler error|exit code -9',
        'The compiler ran out of memory: run the same command again with MAX_JOBS=1 before it.',
    ),
    (
        r'CUDA_HOME environment variable|nvcc\S* (was )?not found|No such file.*nvcc|'
        r'unsupported GNU|mismatches the version that was used to compile',
        'The GPU ops need the CUDA toolkit (nvcc) of the version that torch was built with. Set '
        'CUDA_HOME to it, or build the CPU ops alone with CUDA_VISIBLE_DEVICES= before the '
        'command.',
    ),
    (
        r'Permission denied|Read-only file system',
        'A folder cannot be written. VENV=... moves the environment, MMKD_CACHE=... the wheels.',
    ),
    (
        r'ensurepip|python3[.\d]*-venv',
        'This Python cannot make environments: install its venv package (Debian: python3-venv) or '
        'choose another with PYTHON=...',
    ),
]
AGAIN = 'Mend what the last lines name and run the same command again; finished steps are skipped.'


class StepError(Exception):
    """A step that failed, with what the user needs to know.

    Args:
        reason (str): What failed.
        hint (str): What to do about it.
        command (str): The command that failed. Defaults to ``''``, none.
        log (Path, optional): File with all of its output.
        tail (list[str]): The lines of the output that matter. Defaults to ``()``.
    """

    def __init__(
        self,
        reason: str,
        hint: str = AGAIN,
        command: str = '',
        log: Path | None = None,
        tail: Iterable[str] = (),
    ) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.command, self.log = reason, hint, command, log
        self.tail = list(tail)

    def report(self, title: str) -> str:
        """Everything on one screen; ``title`` names the step."""
        lines = ['', f'FAILED: {title}', f'  what happened: {self.reason}']
        if self.command:
            lines.append(f'  command: {self.command}')
        if self.log:
            lines.append(f'  all of its output: {self.log}')
        if self.tail:
            lines += ['  its last lines:', *(f'    {line[:200]}' for line in self.tail)]
        return '\n'.join([*lines, f'  what to do: {self.hint}'])


def hint_for(output: str) -> str:
    """Returns advice on a command that ended with this output."""
    return next((hint for pattern, hint in HINTS if re.search(pattern, output, re.I)), AGAIN)


def telling_lines(lines: list[str], limit: int = 14) -> list[str]:
    """Returns the error lines of the compiler or pip in an output, and its end."""
    lines = [line.rstrip() for line in lines if line.strip()]
    errors = [line for line in lines[:-limit] if re.search(r'\berror:', line, re.I)]
    return [*errors[:3], *lines[-limit:]]


def clock(seconds: float) -> str:
    """Minutes and seconds, ``'1:05'``."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def pip_progress(line: str) -> str | None:
    """Returns the progress that a line of pip's output tells, or None."""
    line = line.strip()
    if line.startswith('Downloading '):
        return re.sub(r'Downloading (?:\S*/)?(\S+)', r'downloading \1', line)
    if line.startswith(('Collecting ', 'Using cached ', 'Building wheel', 'Preparing metadata')):
        return line[0].lower() + line[1:].split(' (from ')[0]
    if line.startswith('Installing collected packages:'):
        names = line.split(':', 1)[1].split(',')
        return f'installing {len(names)} package{"s" * (len(names) > 1)}, up to{names[-1]}'
    return None


class NinjaProgress:
    """Turns ninja's ``[12/78]`` into a percentage and an estimate of what is left."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.first: tuple[int, float] | None = None

    def __call__(self, line: str) -> str | None:
        found = re.match(r'\s*\[(\d+)/(\d+)\]', line)
        if not found:
            return None
        done, total = int(found[1]), int(found[2])
        if done == total:
            return f'compiled {total} of {total} files, linking'
        text = f'compiled {done} of {total} files ({100 * done // total} %)'
        self.first = self.first or (done, self.now())
        since, start = self.first
        if done < since + 4:
            return text
        left = (self.now() - start) / (done - since) * (total - done)
        return f'{text}, about {max(1, round(left / 60))} min left'


class Status:
    """One line on the progress: rewritten on a terminal, repeated now and then in a log.

    Args:
        every (float): Seconds between two lines in a log. Defaults to 10.
        now (Callable): The clock, in seconds. Defaults to ``time.monotonic``.
    """

    def __init__(self, every: float = 10, now: Callable[[], float] = time.monotonic) -> None:
        self.every, self.now, self.text = every, now, ''
        self.start = self.last = now()
        self.tty = sys.stdout.isatty()

    def update(self, text: str | None = None) -> None:
        """Takes a new text, if there is one, and shows that time passes."""
        self.text = text or self.text
        now = self.now()
        if now - self.last >= (0.2 if self.tty else self.every):
            self.last = now
            line = f'      {clock(now - self.start)}  {self.text}'
            if self.tty:
                line = '\r\x1b[K' + line[: shutil.get_terminal_size().columns - 1]
            print(line, end='' if self.tty else '\n', flush=True)

    def clear(self) -> None:
        """Removes the line from the terminal."""
        if self.tty:
            print('\r\x1b[K', end='', flush=True)
