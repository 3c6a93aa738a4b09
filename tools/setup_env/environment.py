"""A virtual environment: asking what it has, and running commands in it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from setup_env.console import Status, StepError, hint_for, pip_progress, telling_lines

ROOT = Path(__file__).resolve().parents[2]

# Runs in the environment; prints one JSON object. 'half' are packages whose installation was cut
# off: pip unpacks the metadata like any other file and would later take them for installed, but
# adds INSTALLER only when every file is in place. In somebody else's environment all count.
PROBE = r"""
import importlib.metadata, importlib.util, json, os, re, sys, sysconfig
from pathlib import Path
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
ask = json.load(sys.stdin)
canon = lambda name: re.sub(r'[-_.]+', '-', name).lower()
half = []
for folder in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}:
    for info in Path(folder).glob('*.dist-info'):
        if ask['own'] and not ((info / 'INSTALLER').exists() and (info / 'METADATA').exists()):
            half.append(str(info))
dists = {}
for dist in importlib.metadata.distributions():
    if str(getattr(dist, '_path', '')) not in half and dist.metadata['Name']:
        dists.setdefault(canon(dist.metadata['Name']), dist)
seen = set()
def unmet(text, extras):
    req = Requirement(text)
    if req.marker and not any(req.marker.evaluate({'extra': e}) for e in extras or ['']):
        return []
    key = (canon(req.name), str(req.specifier), tuple(sorted(req.extras)))
    if key in seen:
        return []
    seen.add(key)
    dist = dists.get(key[0])
    if dist is None:
        return [f'{req.name}{req.specifier} (missing)']
    if not req.specifier.contains(dist.version, prereleases=True):
        return [f'{req.name}{req.specifier} ({dist.version} is there)']
    return [item for text in dist.requires or [] for item in unmet(text, req.extras)]
def url(name):
    return json.loads((name in dists and dists[name].read_text('direct_url.json')) or '{}')
spec = importlib.util.find_spec('mmcv')
include = [sysconfig.get_path('include'), sysconfig.get_path('platinclude')]
plugin = importlib.util.find_spec('mmkd_plugin')
print(json.dumps({
    'missing': [item for text in ask['requirements'] for item in unmet(text, [])],
    'versions': {name: dist.version for name, dist in dists.items()},
    'half': half,
    'urls': {name: url(name) for name in dists if 'mmcv' in name},
    'ext': bool(spec and any(next(Path(p).glob('_ext*'), 0)
                             for p in spec.submodule_search_locations or [])),
    'plugin': plugin and plugin.origin,
    'tag': f'cp{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, "abiflags", "")}',
    'platform': re.sub(r'\W', '_', sysconfig.get_platform()),
    'headers': any(os.path.exists(os.path.join(p, 'Python.h')) for p in include),
}))
"""


def read_requirements(name: str) -> list[str]:
    """The lines of ``requirements/<name>.txt``, comments left out."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


def name_of(requirement: str) -> str:
    """The normalised name in a requirement.

    Examples:
        >>> name_of('Onedl_MMCV==2.3.6')
        'onedl-mmcv'
    """
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]*\w', requirement)[0]).lower()


def torch_requirement(words: list[str]) -> str:
    """What ``TORCH`` asks for, its options for pip left out; a wheel's file is its version.

    Examples:
        >>> torch_requirement(['--pre', 'torch==2.9.0', '-f', 'wheels'])
        'torch==2.9.0'
        >>> torch_requirement(['/tmp/torch-2.8.0+cpu-cp311-cp311-linux_x86_64.whl'])
        'torch==2.8.0+cpu'
    """
    for word in words:
        if word.endswith('.whl') and Path(word).name.startswith('torch-'):
            return 'torch==' + Path(word).name.split('-')[1]
        if re.match(r'torch\b(?![-/])', word):
            return word
    return 'torch'


#: What older versions of torch need; the first versions that do without.
LIMITS_OF_OLD_TORCH = {
    'numpy<2': (2, 3),  # arrays of numpy 2 cannot become tensors
    'transformers<5': (2, 6),  # mmdet cannot be imported beside those that are too new
    'transformers<4.47': (2, 2),
}


def limits_of(torch: str) -> list[str]:
    """Returns limits on packages that came after a torch.

    Examples:
        >>> limits_of('2.2.2+cpu'), limits_of('2.10.0')
        (['numpy<2', 'transformers<5'], [])
    """
    version = tuple(map(int, re.findall(r'\d+', torch)[:2]))
    return [limit for limit, first in LIMITS_OF_OLD_TORCH.items() if version < first]


class Environment:
    """A virtual environment.

    Args:
        path (Path): Its folder.
        stack (str): ``'onedl'`` or ``'upstream'``.
    """

    def __init__(self, path: Path, stack: str) -> None:
        self.path, self.stack = path.absolute(), stack
        self.python = self.path / 'bin' / 'python'
        self.notes = self.path / 'mmkd-setup'
        self.fds: list[int] = []

    @property
    def claimed(self) -> bool:
        """Whether this script made it or took it over."""
        return (self.notes / 'theirs.txt').exists()

    def claim(self, theirs: dict[str, str]) -> None:
        """Notes that this script uses it, and which packages in it must not be changed."""
        self.notes.mkdir(parents=True, exist_ok=True)
        draft = self.notes / 'theirs.txt.part'
        lines = [f'{name}=={version}\n' for name, version in sorted(theirs.items())]
        draft.write_text(''.join(lines), encoding='utf-8')
        draft.replace(self.notes / 'theirs.txt')

    @property
    def theirs(self) -> dict[str, str]:
        """Versions of the packages that were there before; this script never replaces them."""
        lines = (self.notes / 'theirs.txt').read_text(encoding='utf-8').split()
        return dict(line.split('==', 1) for line in lines)

    def variables(self) -> dict[str, str]:
        """Returns the environment variables for commands in it."""
        unwanted = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_CONSTRAINT')
        result = {key: value for key, value in os.environ.items() if key not in unwanted}
        result.update(
            PATH=f'{self.python.parent}{os.pathsep}{os.environ.get("PATH", os.defpath)}',
            VIRTUAL_ENV=str(self.path),
            PYTHONNOUSERSITE='1',
            PYTHONUNBUFFERED='1',
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_NO_INPUT='1',
        )
        return result

    def probe(self, requirements: Iterable[str] = ()) -> dict:
        """Returns what the environment has, and which requirements it does not meet."""
        own = self.claimed and not self.theirs
        done = subprocess.run(
            [str(self.python), '-I', '-c', PROBE],
            input=json.dumps({'requirements': list(requirements), 'own': own}),
            capture_output=True,
            text=True,
            env=self.variables(),
            cwd='/',
        )
        if done.returncode:
            raise StepError(
                f'{self.python} does not run',
                f'Delete {self.path} and run the same command again.',
                tail=telling_lines(done.stderr.splitlines(), 5),
            )
        return json.loads(done.stdout.splitlines()[-1])

    def import_error(self, module: str) -> str | None:
        """Returns the last line of the error of an import, or None."""
        done = subprocess.run(
            [str(self.python), '-I', '-c', f'import {module}'],
            capture_output=True,
            text=True,
            env=self.variables(),
            cwd='/',
        )
        words = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        return words[-1] if done.returncode else None

    def run(
        self,
        command: list[str],
        log: str,
        show: Callable[[str], str | None] = pip_progress,
        every: float = 10,
        variables: dict[str, str] | None = None,
    ) -> None:
        """Runs a command with a live status line; all of its output goes to a file.

        Args:
            command (list[str]): The command.
            log (str): Name of the log.
            show (Callable): Turns a line of output into a status. Defaults to that of pip.
            every (float): Seconds between two lines of status in a log. Defaults to 10.
            variables (dict, optional): More environment variables.

        Raises:
            StepError: If the command fails.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        log_path = self.notes / f'{log}.log'
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env={**self.variables(), **(variables or {})},
            cwd=ROOT,
            pass_fds=self.fds,
            start_new_session=True,
        )
        try:
            with log_path.open('a', encoding='utf-8') as file:
                file.write(f'$ {shlex.join(command)}\n')
                lines = follow(process, file, show, Status(every))
            code = process.wait()
        finally:
            stop(process)
        if code:
            output = ''.join(lines[-400:]) + f'exit code {code}'
            raise StepError(
                f'the command ended with exit code {code}',
                hint_for(output),
                shlex.join(command),
                log_path,
                telling_lines(lines),
            )

    def pip(self, *words: str, log: str, **more: object) -> None:
        """Runs ``pip install`` under the environment's constraints; see :meth:`run`."""
        command = [str(self.python), '-I', '-u', '-m', 'pip', 'install', '--progress-bar', 'off']
        self.run([*command, '-c', str(self.constraints()), *words], log, **more)

    def constraints(self) -> Path:
        """Writes the constraints for all steps: their packages, torch, and the known limits."""
        theirs = self.theirs
        limits = [r for r in read_requirements('constraints') if name_of(r) not in theirs]
        pins = [f'{name}=={version}' for name, version in theirs.items()]
        torch = self.probe()['versions'].get('torch')
        if torch and 'torch' not in theirs:
            pins.append(f'torch=={torch}')
        if torch:
            pins += [limit for limit in limits_of(torch) if name_of(limit) not in theirs]
        path = self.notes / 'constraints.txt'
        path.write_text('\n'.join([*limits, *pins, '']), encoding='utf-8')
        return path

    def wanted(self, requirements: Iterable[str]) -> list[str]:
        """Returns the requirements, without a version for the packages that were there before."""
        theirs = self.theirs
        return [r if name_of(r) not in theirs else name_of(r) for r in requirements]

    def install(self, requirements: Iterable[str], *words: str, log: str) -> str:
        """Installs what is missing of the requirements and says what it did."""
        requirements = self.wanted(requirements)
        if not self.probe(requirements)['missing']:
            return 'already there'
        self.pip(*words, *requirements, log=log)
        self.check(requirements, log)
        return 'installed'

    def check(self, requirements: list[str], log: str) -> None:
        """Makes sure that pip installed what it was asked for."""
        names = {name_of(requirement) for requirement in requirements}
        missing = [m for m in self.probe(requirements)['missing'] if name_of(m) in names]
        if missing:
            raise StepError(
                f'pip did not install {", ".join(missing)}', log=self.notes / f'{log}.log'
            )


def follow(
    process: subprocess.Popen, log: TextIO, show: Callable[[str], str | None], status: Status
) -> list[str]:
    """Copies the output of a command to its log and shows that it goes on, until it ends.

    Args:
        process (subprocess.Popen): The command.
        log (TextIO): Takes each line at once.
        show (Callable): Turns a line of output into a status, or into None.
        status (Status): Updated with each line, and once a second while there is none.

    Returns:
        list[str]: All lines.
    """
    news: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            news.put(line)
        news.put(None)

    threading.Thread(target=read, daemon=True).start()
    lines: list[str] = []
    status.update('starting')
    try:
        while True:
            try:
                line = news.get(timeout=1)
            except queue.Empty:
                status.update()
                continue
            if line is None:
                return lines
            log.write(line)
            log.flush()
            lines.append(line)
            status.update(show(line))
    finally:
        status.clear()


def stop(process: subprocess.Popen) -> None:
    """Ends a command that still runs, and all that it started."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
