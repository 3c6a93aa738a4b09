"""Attempts in processes of their own, forked with the libraries imported, with limits."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from select import select
from types import ModuleType

from benchmarks.zoo.attempt import FAILS, NOT_OURS, Outcome, Work, attempt

#: How often limits are looked at, in seconds.
PAUSE = 0.2


@dataclass(frozen=True)
class Limits:
    """What a process may use.

    Args:
        seconds (float): Processor time, because other programs use the machine, too.
        megabytes (float): Memory of its own.
    """

    seconds: float
    megabytes: float


class Attempt:
    """A process that tries a config.

    Args:
        config (str): The student.
        teacher (str): Its teacher.
        distill (ModuleType): ``tools/distill.py``.
        log (Path): What it prints.
    """

    def __init__(self, config: str, teacher: str, distill: ModuleType, log: Path) -> None:
        self.config, self.teacher, self.log = config, teacher, log
        self.used, self.stage, self.outcome = 0.0, 'alone', None
        self.folder = Path(tempfile.mkdtemp(prefix='zoo-'))
        self.pipe, writing = os.pipe()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            os.close(self.pipe)
            self.run(writing, distill)
        os.close(writing)
        self.told = b''

    def run(self, writing: int, distill: ModuleType) -> None:
        """The life of the process; it does not return."""
        code = 1
        try:
            os.setpgid(0, 0)
            gc.disable()  # it does not live long
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open('w') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(self.folder)

            def tell(**what: object) -> None:
                os.write(writing, json.dumps(what).encode() + b'\n')

            work = Work(self.config, self.teacher, self.folder, lambda stage: tell(stage=stage))
            tell(outcome=asdict(attempt(work, distill)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    @property
    def seconds(self) -> float:
        """Processor time until now, and at the end."""
        self.used = max(self.used, cpu_seconds(self.process))
        return self.used

    def poll(self, limits: Limits) -> Outcome | None:
        """Returns what came out, or None while it runs; ends it beyond a limit."""
        beyond = self.beyond(limits)
        ended, status = os.waitpid(self.process, os.WNOHANG)
        while select([self.pipe], [], [], 0)[0] and (some := os.read(self.pipe, 65536)):
            self.told += some
        for line in self.told.splitlines():
            content = json.loads(line)
            self.stage = content.get('stage', self.stage)
            self.outcome = content.get('outcome')
        if self.outcome is not None:
            if not ended:
                os.waitpid(self.process, 0)
            return self.end(Outcome(**self.outcome))
        if ended:
            return self.end(self.died(f'ended by {_how(status)}'))
        if not beyond:
            return None
        self.kill()
        return self.end(self.died(beyond))

    def beyond(self, limits: Limits) -> str:
        """The limit that it is beyond, in words."""
        if self.seconds > limits.seconds:
            return f'took more than {limits.seconds:g} s'
        if memory_mb(self.process) > limits.megabytes:
            return f'took more than {limits.megabytes:g} MB'
        return ''

    def died(self, why: str) -> Outcome:
        """The outcome of a process that could not tell one."""
        alone, _, rung = self.stage.partition(', ')
        ours = alone != 'alone'
        return Outcome(FAILS if ours else NOT_OURS, alone, why, rung)

    def kill(self) -> None:
        """Ends it at once."""
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def end(self, outcome: Outcome) -> Outcome:
        """Cleans up behind it."""
        os.close(self.pipe)
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcome


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f'exit code {code}'


def cpu_seconds(process: int) -> float:
    """Processor time of a process; 0 if it has gone or the system does not say."""
    try:
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def memory_mb(process: int) -> float:
    """Memory that a process has of its own, in MB; 0 if it has gone or the system does not say."""
    try:
        _, resident, shared, *_ = Path(f'/proc/{process}/statm').read_text().split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf('SC_PAGE_SIZE') / 1e6


def attempts(
    todo: Sequence[tuple[str, str]],
    distill: ModuleType,
    limits: Limits,
    jobs: int,
    logs: Path,
    ended: Callable[[str, str, Outcome, float], None],
) -> None:
    """Tries configs, some at a time.

    Args:
        todo (Sequence[tuple[str, str]]): Students and teachers.
        distill (ModuleType): ``tools/distill.py``.
        limits (Limits): For each process.
        jobs (int): How many at a time.
        logs (Path): Folder for what they print.
        ended (Callable): Is told student, teacher, outcome and seconds of each.
    """
    waiting, running = list(reversed(todo)), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config, teacher = waiting.pop()
                name = config.replace('::', '_').replace('/', '_').removesuffix('.py')
                running.append(Attempt(config, teacher, distill, logs / f'{name}.log'))
            for one in list(running):
                outcome = one.poll(limits)
                if outcome is not None:
                    running.remove(one)
                    ended(one.config, one.teacher, outcome, one.seconds)
            time.sleep(PAUSE)
    finally:
        for one in running:
            one.kill()
            shutil.rmtree(one.folder, ignore_errors=True)
