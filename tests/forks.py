"""Programs that others start, as forks of this process, which has imported the libraries."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from benchmarks.gains.training import Processes, RunError
from tests.attacks.harness import call_tool
from tests.imports import import_all
from tests.tools.tool_runs import load_tool


class Started:
    """What of a ``subprocess.Popen`` is used."""

    def __init__(self, pid: int, stdout: IO[str]) -> None:
        self.pid, self.stdout, self.returncode = pid, stdout, None

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


class Forked(Processes):
    """Starts ``tools/*.py`` as children of this process."""

    def start(self, command: Sequence[str], **settings: Any) -> Started:
        if self.stopped:
            raise RunError('stopped')
        tool, *arguments = command[command.index('ignore') + 1 :]
        import_all()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _run(Path(tool).stem, arguments, settings['env'], writing)
        os.close(writing)
        process = Started(child, os.fdopen(reading))
        self.running.add(process)
        return process


def _run(tool: str, arguments: Sequence[str], env: dict[str, str], out: int) -> NoReturn:
    """What the forked process does."""
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(1, 'w', buffering=1, closefd=False)  # noqa: SIM115
        os.environ.update(env)
        call_tool(load_tool(tool).main, tool, arguments)
        status = 0
    except SystemExit as end:
        print(end.code)
        status = int(end.code is not None and end.code != 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
