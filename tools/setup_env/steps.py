"""The steps from nothing to an environment that can train."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from setup_env.console import NinjaProgress, Status, StepError, clock
from setup_env.environment import ROOT, Environment, name_of, read_requirements, torch_requirement
from setup_env.joining import is_joined, join_sources
from setup_env.wheels import WheelCache, build_jobs, locked, wheel_key

DEFAULT_TORCH = 'torch==2.13.0'
OLDEST, NEWEST = (3, 10), (3, 13)
SETUPTOOLS = {'onedl': 'setuptools>=80,<82', 'upstream': 'setuptools>=65,<81'}
STACKS = {
    'onedl': {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmseg': 'onedl-mmsegmentation',
    },
    'upstream': {
        'mmengine': 'mmengine',
        'mmcv': 'mmcv',
        'mmdet': 'mmdet',
        'mmseg': 'mmsegmentation',
    },
}
OTHER_NAMES = {'onedl': ['mmcv-full', 'mmcv-lite', 'mmengine-lite'], 'upstream': []}


class Setup:
    """The steps from nothing to an environment that can train.

    Args:
        env (Environment): The environment.
        torch (str): What to give pip for torch. Empty: what is there, else the default.
        libs (list[str]): ``'mmseg'``, ``'mmdet'`` or both.
        ops (str): ``'never'``: mmcv without ops will do; ``'cached'``: with ops if a wheel is
            there; ``'required'``: with ops, built if need be.
        extras (list[str]): Extras of the plugin.
        cache (WheelCache): Where wheels with ops are kept.
    """

    def __init__(
        self,
        env: Environment,
        torch: str,
        libs: list[str],
        ops: str,
        extras: list[str],
        cache: WheelCache,
    ) -> None:
        self.env, self.libs, self.ops, self.extras, self.cache = env, libs, ops, extras, cache
        self.torch = shlex.split(torch)
        self.title = 'start'
        self.names = STACKS[env.stack]
        pins = {name_of(line): line for line in read_requirements(env.stack)}
        self.pins = {key: pins.pop(name) for key, name in self.names.items()}
        self.others = [pin for name, pin in pins.items() if name != 'setuptools']

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Returns titles and functions, in order; each function says what it did."""
        libs = ' and '.join(self.libs)
        return [
            (f'virtual environment {self.env.path}', self.make_venv),
            (
                f'torch ({shlex.join(self.torch) or "what is there, else " + DEFAULT_TORCH})',
                self.install_torch,
            ),
            ('build tools', self.install_tools),
            (
                f'mmengine and what {", ".join(["the plugin", *self.extras])} need',
                self.install_libraries,
            ),
            (f'mmcv (compiled ops: {self.ops})', self.install_mmcv),
            (libs, self.install_mm),
            ('this plugin, editable', self.install_plugin),
            ('imports', self.check_imports),
        ]

    def run(self) -> None:
        """Runs all the steps."""
        steps, start = self.steps(), time.monotonic()
        for number, (title, function) in enumerate(steps, 1):
            self.title = f'[{number}/{len(steps)}] {title}'
            print(self.title, flush=True)
            began = time.monotonic()
            result = function()
            print(f'      {result} ({time.monotonic() - began:.0f} s)', flush=True)
        print(f'Environment ready: {self.env.path} ({clock(time.monotonic() - start)} min)')

    def make_venv(self) -> str:
        """Makes the environment, or finds out who made the one that is there."""
        env = self.env
        if env.path.exists() and any(env.path.iterdir()) and not env.claimed:
            return self.adopt()
        if env.python.exists() and self.python_version(env.python):
            works = subprocess.run(
                [str(env.python), '-I', '-m', 'pip', '--version'],
                capture_output=True,
                env=env.variables(),
            )
            if not works.returncode:
                self.remove_half_installed()
                return 'already there'
        self.check_python(sys.version_info[:2], sys.executable)
        env.claim({})
        env.run([sys.executable, '-m', 'venv', str(env.path)], '1-venv')
        self.check_python(self.python_version(env.python), env.python)
        return 'made'

    def adopt(self) -> str:
        """Takes an environment that somebody else made: adds to it, changes nothing in it."""
        env = self.env
        if not env.python.exists():
            raise StepError(
                f'{env.path} is there and is not an environment',
                'Let VENV=... name another folder.',
            )
        self.check_python(self.python_version(env.python), env.python)
        versions = env.probe()['versions']
        if set(versions) <= {'pip', 'setuptools', 'wheel'}:
            versions = {}
        env.claim(versions)
        return f'yours: its {len(versions)} packages stay as they are' if versions else 'empty'

    def remove_half_installed(self) -> None:
        """Forgets packages whose installation was cut off, so that pip installs them again."""
        for info in self.env.probe()['half']:
            shutil.rmtree(info)
            print(f'      {Path(info).name} is half installed: once more', flush=True)

    def python_version(self, python: Path) -> tuple[int, ...] | None:
        """Returns the version of an interpreter, or None if it does not run."""
        code = 'import sys; print(*sys.version_info[:2])'
        try:
            done = subprocess.run([str(python), '-I', '-c', code], capture_output=True, text=True)
        except OSError:
            return None
        return tuple(map(int, done.stdout.split())) if not done.returncode else None

    def check_python(self, version: tuple[int, ...] | None, python: Path | str) -> None:
        """Refuses a Python on which the stack does not run."""
        if version is None or not OLDEST <= tuple(version) <= NEWEST:
            span = ' to '.join('.'.join(map(str, v)) for v in (OLDEST, NEWEST))
            is_now = '.'.join(map(str, version)) if version else 'broken'
            raise StepError(
                f'the {self.env.stack} stack needs Python {span}, {python} is {is_now}',
                'Choose another with PYTHON=..., and a new VENV=... if that is the old one.',
            )

    def check_other_stack(self) -> None:
        """Refuses an environment with the other stack, whose files this one would overwrite."""
        versions, stack = self.env.probe()['versions'], self.env.stack
        other = next(name for name in STACKS if name != stack)
        found = [n for n in [*STACKS[other].values(), *OTHER_NAMES[stack]] if n in versions]
        if found:
            raise StepError(
                f'{self.env.path} holds {", ".join(found)}; {", ".join(self.names.values())} '
                'have the same import names and would overwrite their files',
                f'Use that stack with STACK={other}, or another folder with VENV=...',
            )

    def install_torch(self) -> str:
        """Installs torch; no later step changes it."""
        self.check_other_stack()
        env = self.env
        have = env.probe()['versions'].get('torch')
        if not self.torch and have:
            return f'torch {have} already there'
        words = self.torch or [DEFAULT_TORCH]
        wanted = torch_requirement(words)
        if have and not env.probe([wanted])['missing']:
            return f'torch {have} already there'
        if 'torch' in env.theirs:
            raise StepError(
                f'{env.path} has torch {have} of its own, TORCH asks for {wanted}',
                'Leave TORCH out, or let VENV=... name a new folder.',
            )
        (env.notes / 'constraints.txt').write_text('', encoding='utf-8')
        command = [str(env.python), '-I', '-u', '-m', 'pip', 'install', '--progress-bar', 'off']
        env.run([*command, *words], '2-torch')
        env.check([wanted], '2-torch')
        return f'torch {env.probe()["versions"]["torch"]} installed'

    def install_tools(self) -> str:
        """Installs what builds the packages that come as source."""
        env, setuptools = self.env, SETUPTOOLS[self.env.stack]
        to_build = [self.pins[name] for name in ('mmcv', *self.libs)]
        if 'setuptools' in env.theirs and env.probe(env.wanted(to_build))['missing']:
            wrong = env.probe([setuptools])['missing']
            if wrong:
                raise StepError(
                    f'{" and ".join(map(name_of, to_build))} are built with {wrong[0]}',
                    f'Change it yourself ({env.python} -m pip install "{setuptools}"), delete '
                    f'{env.notes} and run the same command again; or let VENV=... name a new '
                    'folder.',
                )
        tools = [setuptools, 'wheel', 'packaging', 'numpy<2.3']
        if self.ops == 'required':
            tools += ['ninja', 'psutil']
        return env.install(tools, log='3-tools')

    def install_libraries(self) -> str:
        """Installs everything that comes as a wheel, in one go."""
        lists = [read_requirements(extra) for extra in ['runtime', *self.extras]]
        lines = [line for lines in lists for line in lines if name_of(line) != 'torch']
        requirements = [self.pins['mmengine'], 'opencv-python<4.13', *self.others, *lines]
        return self.env.install(dict.fromkeys(requirements), log='4-libraries')

    def install_mmcv(self) -> str:
        """Installs mmcv with or without ops; pip itself cannot tell the two apart."""
        env, name = self.env, self.names['mmcv']
        pin = env.wanted([self.pins['mmcv']])[0]
        state = env.probe([pin])
        right, ops = not state['missing'], state['ext']
        broken = env.import_error('mmcv.ops') if right and ops else None
        if right and name in env.theirs:
            if self.ops == 'required' and (broken or not ops):
                raise StepError(
                    f'the mmcv in {env.path} has no compiled ops' + (f': {broken}' * bool(broken)),
                    'It is yours and stays as it is. Reinstall it with ops, or let VENV=... name '
                    'a new folder.',
                )
            return 'yours, already there'
        if right and ops and not broken and not self.built_for_another_torch(state):
            return 'already there, with compiled ops'
        if right and not ops and self.ops == 'never':
            return 'already there, without compiled ops'

        wheel = None
        if self.ops != 'never':
            key = self.key(state)
            wheel = self.cache.find(key)
            if wheel is None and self.ops == 'required':
                wheel = self.build(key, state)
        if wheel:
            print(f'      with compiled ops, from {wheel.parent}', flush=True)
            env.pip('--force-reinstall', '--no-deps', str(wheel), log='5-mmcv')
            env.install([pin], log='5-mmcv')  # what it depends on
            broken = env.import_error('mmcv.ops')
            if broken:
                raise StepError(
                    f'mmcv was installed from {wheel} and fails: {broken}',
                    f'Delete {wheel.parent} and run the same command again to build it anew.',
                )
            return 'installed, with compiled ops'
        if right and not ops:
            return 'already there, without compiled ops'
        print('      without compiled ops: no compiler is needed', flush=True)
        words = ['--force-reinstall', '--no-deps'] if right else []
        with tempfile.TemporaryDirectory() as folder:
            # Without torch in sight mmcv's build leaves the ops out. An isolated build would do as
            # well, but takes longer and on another setuptools.
            (Path(folder) / 'torch.py').write_text('raise ModuleNotFoundError("hidden")\n')
            env.pip(
                '--no-build-isolation',
                '--no-cache-dir',
                *words,
                pin,
                log='5-mmcv',
                variables={'PYTHONPATH': folder},
            )
        env.check([pin], '5-mmcv')
        return 'installed, without compiled ops'

    def key(self, state: dict) -> str:
        """Returns the key of the wheel for this environment."""
        version = self.pins['mmcv'].split('==')[1]
        torch = state['versions']['torch']
        return wheel_key(
            state['tag'], state['platform'], torch, self.names['mmcv'], version, self.with_cuda()
        )

    def with_cuda(self) -> bool:
        """Whether mmcv's build would compile for CUDA (the rule is mmcv's)."""
        if os.environ.get('FORCE_CUDA', '0') == '1':
            return True
        code = 'import torch; assert torch.cuda.is_available()'
        return not subprocess.run(
            [str(self.env.python), '-I', '-c', code], capture_output=True, env=self.env.variables()
        ).returncode

    def built_for_another_torch(self, state: dict) -> bool:
        """Whether the installed mmcv is a wheel of the cache, made for another torch."""
        url = state['urls'].get(self.names['mmcv'], {}).get('url', '')
        made_for = re.search(r'-torch([^/]*?)-\w*mmcv', url.replace('%2B', '+'))
        return bool(made_for) and made_for[1] != state['versions']['torch']

    def build(self, key: str, state: dict) -> Path:
        """Builds the wheel with ops in the cache, or waits for somebody who does."""
        env, cache = self.env, self.cache
        compiler = os.environ.get('CXX') or 'c++'
        if not shutil.which(shlex.split(compiler)[0]):
            raise StepError(
                f'mmcv\'s ops need a C++ compiler, and there is no "{compiler}"',
                'Install g++ (Debian: g++) or name a compiler with CXX=...',
            )
        if not state['headers']:
            raise StepError(
                "mmcv's ops need Python.h, and this Python comes without",
                'Install its headers (Debian: python3-dev) or choose another with PYTHON=...',
            )
        env.install(['ninja', 'psutil'], log='3-tools')
        wait = Status(30)
        waiting = lambda: wait.update(f'another process builds {key}, waiting')  # noqa: E731
        work, pin = cache.work(key), self.pins['mmcv']
        try:
            work.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StepError(
                f'{cache.root} cannot be written: {error}',
                'Let MMKD_CACHE=... name a folder that can.',
            ) from error
        with locked(work.with_name(key + '.lock'), waiting) as fd:
            wait.clear()
            found = cache.find(key)
            if found:
                return found
            env.fds.append(fd)
            try:
                wheel = self.compile(pin, work)
            finally:
                env.fds.remove(fd)
            final = cache.publish(key, wheel)
            shutil.rmtree(work)
            return final

    def compile(self, pin: str, work: Path) -> Path:
        """Compiles in ``work``; if it is stopped, what is compiled stays there.

        Without CUDA most of the time goes into torch's headers, so few large files are compiled. A
        compiler that does not manage them gets the small ones.
        """
        source = work / 'source'
        self.fetch_source(pin, work)
        joined = is_joined(source)
        try:
            return self.build_wheel(work, 4 if joined else 20)
        except StepError:
            if not joined:
                raise
        print('      the joined files do not compile; now each file by itself', flush=True)
        shutil.rmtree(source)
        (work / 'apart').touch()
        self.fetch_source(pin, work)
        return self.build_wheel(work, 20)

    def fetch_source(self, pin: str, work: Path) -> None:
        """Unpacks mmcv's source in ``work``, unless it is there."""
        env, source = self.env, work / 'source'
        if source.exists():
            return
        fetched, unpacked = work / 'fetched', work / 'unpacked'
        for folder in (fetched, unpacked):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        env.run(
            [
                *(str(env.python), '-I', '-u', '-m', 'pip', 'download'),
                '--no-deps',
                '--no-build-isolation',
                '--no-binary',
                name_of(pin),
                '-d',
                str(fetched),
                pin,
            ],
            '5-mmcv-source',
        )
        with tarfile.open(next(fetched.glob('*.tar.gz'))) as archive:
            safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
            archive.extractall(unpacked, **safe)
        found = next(unpacked.iterdir())
        if not (work / 'apart').exists() and not self.with_cuda():
            join_sources(found)
        found.rename(source)

    def build_wheel(self, work: Path, minutes: int) -> Path:
        """Builds the wheel of the source in ``work``.

        Args:
            work (Path): The folder.
            minutes (int): What it takes on two cores, for a message.
        """
        env, out = self.env, work / 'out'
        jobs = os.environ.get('MAX_JOBS') or str(build_jobs())
        print(
            f'      building with {jobs} jobs, once per machine: about {minutes} minutes on two '
            'cores; if stopped,\n      the next run goes on with what is compiled',
            flush=True,
        )
        shutil.rmtree(out, ignore_errors=True)
        env.run(
            [
                *(str(env.python), '-I', '-u', '-m', 'pip', 'wheel'),
                '-v',
                '--no-build-isolation',
                '--no-deps',
                '--no-cache-dir',
                '-w',
                str(out),
                str(work / 'source'),
            ],
            '5-mmcv-build',
            show=NinjaProgress(),
            every=30,
            variables={'MAX_JOBS': jobs},
        )
        return next(out.glob('*.whl'))

    def install_mm(self) -> str:
        """Installs mmseg and mmdet, whose builds need torch in the environment."""
        pins = [self.pins[lib] for lib in self.libs]
        return self.env.install(pins, '--no-build-isolation', log='6-mm')

    def install_plugin(self) -> str:
        """Installs this checkout; what it needs is there already."""
        env, version = self.env, {}
        exec((ROOT / 'mmkd_plugin' / 'version.py').read_text(encoding='utf-8'), version)
        state = env.probe([f'mmkd-plugin=={version["__version__"]}'])
        here = str(ROOT / 'mmkd_plugin' / '__init__.py')
        if not state['missing'] and state['plugin'] == here:
            return 'already there'
        env.pip('--no-build-isolation', '--no-deps', '-e', str(ROOT), log='7-plugin')
        found = env.probe()['plugin']
        if found != here:
            raise StepError(
                f'mmkd_plugin is imported from {found}, not from {ROOT}',
                f'Delete {env.path} and run the same command again.',
            )
        return 'installed'

    def check_imports(self) -> str:
        """Imports what was installed; OpenCV falls back to the build without a display."""
        env = self.env
        error = env.import_error('cv2')
        if error and re.search(r'lib(GL|gthread|X|SM|xcb)', error):
            if 'opencv-python' in env.theirs:
                raise StepError(
                    f'the OpenCV in {env.path} fails: {error}',
                    'It is yours and stays as it is. Install that library (Debian: libgl1), or '
                    'opencv-python-headless over it.',
                )
            version = env.probe()['versions']['opencv-python']
            print(f'      {error}\n      so OpenCV for machines without a display', flush=True)
            env.pip(
                '--force-reinstall',
                '--no-deps',
                f'opencv-python-headless=={version}',
                log='8-opencv',
            )
        modules = ['cv2', 'mmcv', *self.libs, 'mmkd_plugin.registry']
        error = env.import_error(', '.join(modules))
        if error:
            raise StepError(f'imports fail: {error}')
        return ', '.join(modules)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Make the environment, or what is missing of it.')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='its folder')
    parser.add_argument('--torch', default='', help=f'for pip; default {DEFAULT_TORCH}')
    parser.add_argument('--stack', choices=list(STACKS), default='onedl')
    parser.add_argument('--libs', nargs='+', choices=['mmseg', 'mmdet'], default=['mmseg'])
    parser.add_argument(
        '--ops',
        choices=['never', 'cached', 'required'],
        default='cached',
        help="mmcv's compiled ops",
    )
    parser.add_argument(
        '--extras', nargs='*', choices=['cache', 'demo', 'docs', 'reproduce', 'test'], default=[]
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Makes the environment and returns the exit code."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    env = Environment(args.venv, args.stack)
    setup = Setup(env, args.torch, args.libs, args.ops, args.extras, WheelCache())
    wait = Status(30)
    name = hashlib.sha256(str(env.path).encode()).hexdigest()[:12]
    lock = Path(tempfile.gettempdir()) / f'mmkd-{os.getuid()}-{name}.lock'
    try:
        with locked(lock, lambda: wait.update(f'another run works on {env.path}')) as fd:
            wait.clear()
            env.fds.append(fd)
            setup.run()
    except StepError as error:
        print(error.report(setup.title), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\nStopped at {setup.title}. The same command goes on from there.', file=sys.stderr)
        return 130
    return 0
