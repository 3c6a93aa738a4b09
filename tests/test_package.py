"""The package's face: public names, loaded when they are used; its command; its wheel."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools
from mmengine.config import Config

import mmkd_plugin
from mmkd_plugin import losses
from mmkd_plugin.__main__ import COMMANDS, as_typed, help_text, main, tool
from mmkd_plugin.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_there():
    for name in mmkd_plugin.__all__:
        assert getattr(mmkd_plugin, name) is not None
    assert set(mmkd_plugin.__all__) <= set(dir(mmkd_plugin))
    kinds = {name for name in losses.__all__ if name[0].isupper()}
    assert kinds <= set(mmkd_plugin.__all__)


#: Registered under names that configs use and nobody imports.
BY_CONFIG_ONLY = {
    'BcosBatchNorm2d',
    'BcosConv2d',
    'DetDataPreprocessor',
    'FCNHead3x3',
    'ParaphraserTraining',
    'SegDataPreProcessor',
    'StudentMaps',
}


def test_models_that_a_config_can_name_are_public():
    MODELS.get('ChannelWiseLoss')  # imports all that registers something
    own = {n for n, kind in MODELS.module_dict.items() if kind.__module__.startswith('mmkd_plugin')}
    assert own - BY_CONFIG_ONLY <= set(mmkd_plugin.__all__)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="has no attribute 'ChanelWiseLoss'"):
        mmkd_plugin.ChanelWiseLoss  # noqa: B018


@pytest.mark.parametrize('name', ['__version__', 'Distiller', 'ChannelWiseLoss'])
def test_neither_library_is_loaded(name):
    found = '{"mmseg", "mmdet"} & {*sys.modules}'
    script = f'import sys, mmkd_plugin; mmkd_plugin.{name}; print({found})'
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith('set()')


# ---------------------------------------------------------------- the command


@pytest.fixture
def for_clones(monkeypatch) -> tuple[str, ...]:
    """What setup.py keeps out of the wheel."""
    monkeypatch.setattr(setuptools, 'setup', lambda **_: None)
    monkeypatch.chdir(ROOT)
    return runpy.run_path('setup.py')['FOR_CLONES']


def test_each_tool_is_a_command_or_for_clones(for_clones):
    tools = {file.relative_to(ROOT / 'tools').as_posix() for file in (ROOT / 'tools').rglob('*.py')}
    commands = set(COMMANDS.values())
    assert commands <= tools
    left = {name for name in tools - commands if name.split('/')[0] not in for_clones}
    assert not left, 'name them in mmkd_plugin/__main__.py, or in FOR_CLONES of setup.py'


def test_help_is_a_table_and_needs_no_library():
    script = (
        'import sys; from mmkd_plugin.__main__ import main; main(); '
        'print({"torch", "mmengine", "numpy", "rich"} & {*sys.modules})'
    )
    command = [sys.executable, '-c', script, '--help']
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith('set()')
    for name in COMMANDS:
        assert f'\n  {name} ' in printed
    for width in (40, 80, 200):
        rows = help_text(width).partition('\n\n  ')[2].split('\n\n')[0].splitlines()
        assert len(rows) >= len(COMMANDS) and max(map(len, rows)) <= max(width, 51)


@pytest.mark.parametrize('called', ['mmkd distill', 'distill.py'])
def test_tools_are_named_as_they_are_called(called, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [called])
    given = 'python tools/train.py A; tools/analysis_tools/get_flops.py; /own/tools/train.py'
    typed = 'mmkd train A; mmkd flops; /own/tools/train.py'
    assert as_typed(given) == (typed if called.startswith('mmkd ') else given)


@pytest.mark.parametrize('name', sorted(set(COMMANDS) - {'demo'}))
def test_help_is_for_the_command_that_was_typed(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['mmkd', name, '--help'])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().out
    assert ended.value.code == 0 and f'usage: mmkd {name}' in told and 'tools/' not in told
    assert 'mmseg::... or mmdet' not in told


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['trian', 'config.py'], 'there is no command trian; did you mean `train`?'),
        (['fit_connector'], 'there is no command fit_connector; did you mean `fit-connector`?'),
        (['x'], 'there is no command x; `mmkd --help` lists them'),
    ],
)
def test_a_misspelt_command(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['mmkd', *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == f'mmkd: error: {said}'


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h'], ['--version']])
def test_the_command_alone(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['mmkd', *arguments])
    main()
    expected = f'mmkd {mmkd_plugin.__version__}' if '--version' in arguments else help_text()
    assert capsys.readouterr().out.split() == expected.split()


def test_a_command_is_the_tool_under_its_own_name(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(sys, 'argv', ['mmkd', 'report', 'no/such/folder'])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith('mmkd report: error: ')
    assert sys.modules['__main__'].__file__ == str(tool('report')) == str(ROOT / 'tools/report.py')


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree; nothing of an earlier build is in it."""
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '-e', out, 'build', '-b', out / 'b']
    command += ['bdist_wheel', '-b', out / 'bdist', '-d', out]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def in_new_environment(wheel: Path) -> Callable[..., str]:
    """Runs a command in an environment with the wheel; other packages are those of the tests.

    The line of a ``.pth`` file is a place to look in. The ``.pth`` files there do not count, so an
    editable install of the clone stays out.
    """
    folder = wheel.parent / 'environment'
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / 'bin' / 'python'
    install = [sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps']
    subprocess.run([*map(str, install), '--no-index', str(wheel)], check=True)
    site = next(folder.glob('lib/python*/site-packages'))
    others = [path for path in sys.path if path.endswith('-packages')]
    (site / 'others.pth').write_text('\n'.join(others))
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env.update(CUDA_VISIBLE_DEVICES='')

    def run(*words: object, cwd: Path) -> str:
        command = [str(folder / 'bin' / str(words[0])), *map(str, words[1:])]
        done = subprocess.run(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    return run


def files_below(folder: str, *skipped: str) -> Iterator[str]:
    for file in (ROOT / folder).rglob('*'):
        parts = file.relative_to(ROOT / folder).parts
        if file.is_file() and '__pycache__' not in parts and parts[0] not in skipped:
            yield file.relative_to(ROOT).as_posix()


def test_the_wheel_is_whole(wheel, for_clones):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        about = {
            name.partition('.dist-info/')[2]: archive.read(name)
            for name in archive.namelist()
            if '.dist-info/' in name
        }
    beside = {'model-index.yml', 'benchmarks/__init__.py', 'benchmarks/lines.py'}
    beside |= {*files_below('configs')}
    beside |= {*files_below('tools', *for_clones), *files_below('benchmarks/gains')}
    assert names == {*files_below('mmkd_plugin'), *(f'mmkd_plugin/.mim/{name}' for name in beside)}
    assert {f'mmkd_plugin/.mim/{name}' for name in beside_the_tools()} <= names
    assert message_from_bytes(about['METADATA'])['Version'] == mmkd_plugin.__version__
    assert about['top_level.txt'].split() == [b'mmkd_plugin']  # where mim looks
    assert 'LICENSE' in {Path(name).name for name in about}
    assert wheel.stat().st_size < 6e6


def beside_the_tools() -> Iterator[str]:
    """The files of ``benchmarks`` that the commands import, and those that these import."""
    waiting, seen = [f'tools/{name}' for name in COMMANDS.values()], set()
    while waiting:
        for node in ast.walk(ast.parse((ROOT / waiting.pop()).read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith('benchmarks'):
                path = node.module.replace('.', '/')
                if (ROOT / path).is_dir():
                    found = {f'{path}/{name.name}.py' for name in node.names}
                else:
                    found = {f'{path}.py'}
                waiting += found - seen
                seen |= found
    assert seen
    yield from seen


CONFIG = """
_base_ = ['mmkd::cwd/cwd-logits_fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py']
where = __import__('mmkd_plugin').__file__
model = dict(teacher=dict(config='mmkd::digit_scenes/fpn_r18-w20_1k_digit-scenes-128x128.py',
                          checkpoint={teacher!r}))
train_cfg = dict(max_iters=1, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""


@pytest.fixture(scope='module')
def tools(in_new_environment, wheel) -> Path:
    """The tools in the environment of the wheel."""
    script = 'from mmkd_plugin.__main__ import tool; print(tool("demo").parent)'
    return Path(in_new_environment('python', '-c', script, cwd=wheel.parent).strip())


@pytest.fixture(scope='module')
def folder(in_new_environment, tools, tmp_path_factory) -> Path:
    """Three images, and a config that trains on them with the teacher of the wheel."""
    folder = tmp_path_factory.mktemp('folder')
    in_new_environment('mmkd', 'make-digit-scenes', '--train', 2, '--val', 1, cwd=folder)
    (teacher,) = tools.glob('demo_teacher/*.pth')
    assert teacher.stat().st_size < 3e6 and teacher.with_suffix('.json').is_file()
    (folder / 'config.py').write_text(CONFIG.format(teacher=str(teacher)))
    return folder


def test_the_wheel_alone_trains(in_new_environment, tools, folder):
    assert ROOT not in tools.parents and tools.parts[-3:] == ('mmkd_plugin', '.mim', 'tools')
    said = in_new_environment('mmkd', 'train', 'config.py', '--work-dir', 'run', cwd=folder)
    assert 'mIoU' in said
    kept = Config.fromfile(folder / 'run' / 'config.py')
    assert Path(kept.where).parent == tools.parents[1]
    page = (folder / 'run' / 'report.html').read_text()
    assert f'{tools.parents[5]}/bin/mmkd train config.py --work-dir run' in page
    assert (folder / 'run' / 'iter_1.pth').is_file()


@pytest.mark.skipif(find_spec('mim') is None, reason='openmim is not installed')
def test_mim_trains_with_the_wheel(in_new_environment, folder):
    mim = ('python', '-c', 'from mim.cli import cli; cli()', 'train', 'mmkd-plugin', 'config.py')
    in_new_environment(*mim, '--gpus', 0, '--work-dir', 'of_mim', cwd=folder)
    assert (folder / 'of_mim' / 'iter_1.pth').is_file()


@pytest.mark.skipif(os.environ.get('WHEEL') != 'all', reason='some minutes: make wheel')
def test_from_the_wheel_to_the_picture(in_new_environment, tmp_path):
    said = in_new_environment('mmkd', 'demo', '--quick', cwd=tmp_path)
    print(said)
    assert 'Distillation closed ' in said
    assert (tmp_path / 'work_dirs' / 'demo-quick' / 'report.png').stat().st_size > 50_000


def test_the_changelog_begins_with_this_version():
    headings = [
        line for line in (ROOT / 'CHANGELOG.md').read_text().splitlines() if line.startswith('## ')
    ]
    assert headings[0].split()[1] == mmkd_plugin.__version__
