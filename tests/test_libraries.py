"""Environments that lack a library, or whose libraries do not go together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmkd_plugin import libraries
from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.libraries import (
    cannot_import,
    import_problem,
    import_reason,
    not_installed,
    scope_problem,
)
from mmkd_plugin.registry import MODELS
from mmkd_plugin.teachers.model import model_config

ROOT = Path(__file__).resolve().parents[1]
TOO_NEW = 'MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
OF_ANOTHER = '/env/mmcv/_ext.so: undefined symbol: _ZN2at4_ops5zeros4callE'
#: What a library says when it is imported, and what is made of it.
BROKEN = {
    f"assert False, '{TOO_NEW}'": f'{TOO_NEW} Versions that go together: docs/troubleshooting.md',
    'import mmcv._no_ext': 'it needs `mmcv._no_ext`, which is not installed',
    'import mmcv._ext': 'it needs the compiled ops of mmcv, and this mmcv has none (docs/',
    f"raise ImportError('{OF_ANOTHER}')": 'the compiled ops of mmcv were built for another torch',
    'import mmsegm': 'it needs `mmsegm`, which is not installed',
    "raise RuntimeError('no')": 'RuntimeError: no',
    'import mmpretrain': 'mmpretrain is not installed: pip install ',
    'import nothing_of_that_name.inner': 'it needs `nothing_of_that_name`, which is not installed',
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a library ``mmbroken``, on the path of imports."""
    file = tmp_path / 'mmbroken' / '__init__.py'
    file.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)  # an mmcv without compiled ops
    hidden = find_spec
    monkeypatch.setattr(libraries, 'find_spec', lambda n: None if n == 'mmpretrain' else hidden(n))
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    yield file
    sys.modules.pop('mmbroken', None)


@pytest.mark.parametrize('text', BROKEN)
def test_why_a_library_cannot_be_imported(text: str, library: Path) -> None:
    library.write_text(text)
    problem = cannot_import('mmbroken')
    assert problem.startswith(f'mmbroken cannot be imported: {BROKEN[text]}')
    assert '\n' not in problem


def test_a_config_that_imports_what_is_not_installed(library: Path, tmp_path: Path) -> None:
    library.write_text('import mmpretrain')
    config = tmp_path / 'student.py'
    config.write_text("custom_imports = dict(imports=['mmbroken'])\nmodel = dict(type='X')\n")
    with pytest.raises(UsageError, match=r'student\.py cannot be read: mmpretrain is not inst'):
        read_config(str(config))
    with pytest.raises(ValueError, match=r"^teacher 't': .*py cannot be read: mmpretrain is not"):
        model_config(str(config), 't')


def test_a_library_that_can_be_imported(library: Path) -> None:
    library.write_text('')
    assert cannot_import('mmbroken') == '' == not_installed('mmbroken')
    assert cannot_import('mmengine') == ''


@pytest.mark.parametrize('fork', [False, True])
def test_what_to_install(fork: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {'onedl-mmengine': '0.10.12'} if fork else {}
    monkeypatch.setattr(libraries, '_is_installed', lambda name: False)
    monkeypatch.setattr(libraries, 'version', lambda name: found[name] if found else missing(name))
    package = 'onedl-mmsegmentation' if fork else 'mmsegmentation'
    assert not_installed('mmseg') == f'mmseg is not installed: pip install {package}'


def missing(name: str) -> None:
    raise libraries.PackageNotFoundError(name)


@pytest.mark.parametrize('name', ['mmsge', 'no name', ''])
def test_a_library_of_no_such_name(name: str) -> None:
    hint = '; did you mean `mmseg`?' if name == 'mmsge' else ''
    assert not_installed(name) == f'no library `{name}` is installed{hint}'


def test_a_folder_that_was_left_behind_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'mmleft' / 'configs').mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not_installed('mmleft').startswith('no library `mmleft` is installed')


def test_scopes() -> None:
    assert scope_problem(Config()) == '' == scope_problem(Config(dict(default_scope='mmengine')))
    assert scope_problem(Config(dict(default_scope='mmsegg'))).endswith('mean `mmseg`?')
    own = dict(default_scope='my_project', custom_imports=dict(imports=['my_project']))
    assert scope_problem(Config(own)) == ''  # it registers its scope under a name of its own


def test_an_import_in_the_middle_of_a_build(library: Path) -> None:
    library.write_text(f"assert False, '{TOO_NEW}'")

    @MODELS.register_module(name='NeedsBroken', force=True)
    class NeedsBroken:
        def __init__(self) -> None:
            import mmbroken  # noqa: F401

    try:
        with (
            pytest.raises(
                ValueError, match=f'^student: mmbroken cannot be imported: {TOO_NEW[:20]}'
            ),
            errors_named('student', dict(type='mmkd_plugin.NeedsBroken')),
        ):
            MODELS.build(dict(type='mmkd_plugin.NeedsBroken'))
    finally:
        MODELS.module_dict.pop('NeedsBroken')


def test_an_error_that_was_raised_from_itself() -> None:
    error = RuntimeError('no')
    error.__cause__ = error
    assert import_problem(error) == '' and import_reason(error) == 'RuntimeError: no'


def test_other_errors_are_no_matter_of_imports() -> None:
    try:
        raise KeyError('width')
    except KeyError as error:
        assert import_problem(error) == ''
    try:
        import nothing_of_that_name  # noqa: F401
    except ImportError as error:
        assert import_problem(error) == ''  # this function's own concern


@pytest.mark.parametrize(
    ('shadowed', 'command', 'words'),
    [
        (
            'mmdet',
            'train',
            f"train: error: default_scope='mmdet': mmdet cannot be imported: {TOO_NEW} Versions",
        ),
        ('mmcv', 'train', 'mmkd: error: mmcv is not installed: pip install '),
        (
            'mmcv',
            'tools/train.py',
            "train.py: error: default_scope='mmdet': mmcv is not installed: ",
        ),
        (
            'mmcv',
            'tools/export_student.py',
            "error: default_scope='mmdet': mmcv is not installed: ",
        ),
        ('mmengine', 'distill', 'mmkd: error: mmengine is not installed: pip install '),
    ],
)
def test_as_a_user_sees_it(shadowed: str, command: str, words: str, tmp_path: Path) -> None:
    library = tmp_path / 'path' / shadowed / '__init__.py'
    library.parent.mkdir(parents=True)
    library.write_text(f"assert False, '{TOO_NEW}'")
    if 'is not installed' in words:  # hidden from the search, as if it had never been installed
        (tmp_path / 'path' / 'sitecustomize.py').write_text(
            'from importlib.machinery import PathFinder\n'
            'find = PathFinder.find_spec\n'
            'def hide(name, path=None, target=None):\n'
            f"    return None if name == '{shadowed}' else find(name, path, target)\n"
            'PathFinder.find_spec = staticmethod(hide)\n'
        )
    config = tmp_path / 'student.py'
    config.write_text("default_scope = 'mmdet'\nmodel = dict(type='RetinaNet')\n")
    torch.save(dict(state_dict={'conv.weight': torch.zeros(1)}), tmp_path / 'x.pth')
    program = [str(ROOT / command)] if command.endswith('.py') else ['-m', 'mmkd_plugin', command]
    files = ['x.pth', 'out.pth'] if 'export' in command else []
    done = subprocess.run(
        [sys.executable, *program, str(config), *files],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path / "path"}{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'work_dirs').exists()
