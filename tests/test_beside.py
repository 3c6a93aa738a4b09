"""Modules and files of the user beside a config are found, or it is said where they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmkd_plugin.beside import beside_a_config
from mmkd_plugin.checkpoint import nearest_names
from mmkd_plugin.cli import UsageError, read_config

IMPORTS = "custom_imports = dict(imports=['{}'])\nmodel = dict(type='Own')\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the config ``own.py``; the user is in another one, ``here``."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith('own_')]:
        del sys.modules[name]


@pytest.mark.parametrize('where', ['.', 'here'], ids=['beside the config', 'where one is'])
@pytest.mark.parametrize('name', ['own_project/losses', 'own_losses'])
def test_own_modules_are_found(own: Path, where: str, name: str) -> None:
    file = own / where / f'{name}.py'
    file.parent.mkdir(exist_ok=True)
    file.write_text('FOUND = __file__\n')
    (own / 'own.py').write_text(IMPORTS.format(name.replace('/', '.')))
    assert read_config('../own.py').model.type == 'Own'
    assert Path(sys.modules[name.replace('/', '.')].FOUND) == file


def test_a_pure_python_config_finds_its_modules(own: Path) -> None:
    (own / 'own_parts.py').write_text('class Net:\n    pass\n')
    text = 'from own_parts import Net\n\nmodel = dict(type=Net)\n'
    (own / 'own.py').write_text(text)
    assert read_config('../own.py').model.type == 'own_parts.Net'
    assert sys.path[-2:] == [str(own), str(own / 'here')]


def test_nothing_installed_is_hidden(own: Path) -> None:
    """The folders come last, and only if a module is not found without them."""
    before = list(sys.path)
    for name in ('json', 'torch', 'mmengine'):
        (own / f'{name}.py').write_text('raise RuntimeError')
    (own / 'own.py').write_text(IMPORTS.format('mmengine.hooks'))
    read_config('../own.py')
    assert sys.path == before
    (own / 'own_losses.py').write_text('import json, torch\n')
    (own / 'own.py').write_text(IMPORTS.format('own_losses'))
    read_config('../own.py')
    assert sys.path == [*before, str(own), str(own / 'here')]


@pytest.mark.parametrize(
    ('name', 'text', 'told'),
    [
        (
            'own_project.losses',
            '',
            r'needs `own_project`, which is not installed, and lies neither beside the config nor '
            'in the folder you are in: type PYTHONPATH=FOLDER in front of the command, with the '
            'folder that own_project lies in$',
        ),
        ('own_losses', 'import nothing_of_the_kind', 'needs `nothing_of_the_kind`, which is not ins'
         'talled$'),
        pytest.param(
            *('mmpretrain.models', '', 'mmpretrain is not installed: pip install'),
            marks=pytest.mark.skipif(bool(find_spec('mmpretrain')), reason='it is installed'),
        ),
    ],
    ids=['missing', 'needs another', 'library'],
)  # fmt: skip
def test_what_is_not_found(own: Path, name: str, text: str, told: str) -> None:
    (own / 'mmpretrain').mkdir()  # a clone, with the library inside
    (own / 'mmpretrain/setup.py').write_text('')
    if text:
        (own / f'{name}.py').write_text(text)
    (own / 'own.py').write_text(IMPORTS.format(name))
    with pytest.raises(UsageError, match=told):
        read_config('../own.py')


def test_a_file_beside_a_config_is_named(own: Path) -> None:
    (own / 'own.py').write_text("model = dict(type='Own')\n")
    (own / 'deep').mkdir()
    (own / 'deep/own.pth').write_text('')
    read_config('../own.py')
    told = f': write this, or type the command in {own}'
    assert nearest_names('deep/own.pth') == f'; there is {own}/deep/own.pth{told}'
    assert beside_a_config('deep') == f'; there is {own}/deep{told}'
    (own / 'here/deep').mkdir()
    assert beside_a_config('deep') == '; it is a folder, and a file is needed'
    assert nearest_names('../own.py') == '; it is a file, and a folder is needed'
    with pytest.raises(
        UsageError, match=r'^no config at deep; it is a folder, and a file is needed$'
    ):
        read_config('deep')
    assert beside_a_config(own / 'none.py') == beside_a_config('none.py') == ''


def test_of_many_files_only_similar_names_are_told(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f'iter_{number}.pth').write_text('')
    assert 'there is iter_0.pth, iter_1.pth' in nearest_names(tmp_path / 'psp18.pth', ['.pth'])
    (tmp_path / 'psp.pth').write_text('')
    assert nearest_names(tmp_path / 'psp18.pth') == f'; in {tmp_path} there is psp.pth'
    none = nearest_names(tmp_path / 'an_other_student.pth', ['.pth'])
    assert none == f'; no name in {tmp_path} is like it'
