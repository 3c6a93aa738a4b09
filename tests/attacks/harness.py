"""Runs of a tool in a forked process, and how each of them ended."""

from __future__ import annotations

import gc
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.runner.runner
from mmengine.logging import MMLogger
from mmengine.model import BaseModel

from tests.imports import import_all

#: After this many seconds an attack has hung.
LIMIT = 600  # a busy machine takes minutes for seconds

#: Written into the log when a model trains its first batch.
STEP = '<<a step>>'


class Ending(NamedTuple):
    """How a run ended.

    Args:
        status (int): 0, or what the process ended with; negative for a signal.
        raw (bool): Whether an exception reached the top.
        log (str): All that was printed.
        steps (int): In how many iterations the model was trained.
        seconds (float): How long it took.
    """

    status: int
    raw: bool
    log: str
    steps: int
    seconds: float

    @property
    def message(self) -> str:
        """The line of a refusal, or the last one of a traceback."""
        lines = [line for line in self.log.strip().splitlines() if line.strip()]
        return lines[-1] if lines else ''


def fork(call: Callable[[], Any], folder: Path, limit: float = LIMIT) -> Ending:
    """Calls something in a process of its own, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'log.txt'
    sys.stdout.flush()
    sys.stderr.flush()
    import_all()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(call, folder, file)
    status = _wait(child, start + limit)
    log = file.read_text(errors='replace')
    return Ending(
        status, status == 3, log.replace(STEP, ''), log.count(STEP), time.monotonic() - start
    )


def _wait(child: int, end: float) -> int:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGALRM
        time.sleep(0.005)


def _run(call: Callable[[], Any], folder: Path, file: Path) -> None:
    """What the forked process does; it never returns."""
    status = 0
    try:
        out = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(1, 'w', buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        MMLogger._instance_dict.clear()  # they write where the first process does
        gc.freeze()  # mmengine has all searched that the first process has built
        mmengine.runner.runner.collect_env = dict  # asks a compiler each time
        _count_steps()
        call()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code)
    except BaseException:
        status = 3
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _count_steps() -> None:
    train_step = BaseModel.train_step

    def counted(self: BaseModel, *args: Any, **kwargs: Any) -> Any:
        print(STEP)
        return train_step(self, *args, **kwargs)

    BaseModel.train_step = counted


def call_tool(main: Callable[[], None], tool: str, arguments: Sequence[object]) -> None:
    """Calls the ``main`` of a tool as if it was typed."""
    sys.argv = [f'{tool}.py', *map(str, arguments)]
    os.environ['LOCAL_RANK'] = '0'
    main()


def fault_of(ending: Ending, tool: str, words: Sequence[str] | None) -> str | None:
    """What falls short in how an attack ended, None if it held.

    Args:
        ending (Ending): How it ended.
        tool (str): The tool, as it calls itself in its errors.
        words (Sequence[str] | None): What the line of the refusal says, each with alternatives
            between ``|``; None if the input is valid.
    """
    if ending.status == -signal.SIGALRM:
        return 'hangs'
    if ending.status < 0:
        return f'died of signal {-ending.status}'
    if ending.raw:
        return ('late, ' if ending.steps > 1 else '') + f'raw: {ending.message}'
    if ending.status == 0:
        if words is not None:
            return f'silent: {numbers_of(ending)}'
        bad = [x for x in numbers_of(ending).values() if not math.isfinite(x)]
        return f'nonsense: {numbers_of(ending)}' if bad else None
    line = ending.message
    if words is None:
        return f'refused: {line}'
    if not line.startswith(f'{tool}.py: error: '):
        return f'usage: {line}' if f'{tool}.py: error: ' not in ending.log else f'lines: {line}'
    if ending.steps > 1:
        return f'late: {line}'
    missing = [word for word in words if not any(one in line for one in word.split('|'))]
    return f'wrong reason, lacks {missing}: {line}' if missing else None


def numbers_of(ending: Ending) -> dict[str, float]:
    """The last losses and gradients that a run logged."""
    found = re.findall(r'(\S*(?:loss|grad_norm)\S*): (\S+)', ending.log)
    numbers = {}
    for key, text in found:
        try:
            numbers[key] = float(text)
        except ValueError:
            continue
    return numbers
