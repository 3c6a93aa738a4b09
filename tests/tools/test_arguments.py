"""Arguments of the tools that cannot be used: one line each, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmkd_plugin.cli import UsageError, apply_options, check_file, check_folder, check_number


@pytest.mark.parametrize(
    ('tool', 'arguments', 'words'),
    [
        ('train', ['--work-dir', '{file}'], '--work-dir {file}: {file} is a file; a folder is'),
        ('train', ['--work-dir', '{file}/run'], '{file} is a file; a folder is needed'),
        ('train', ['--cfg-options', 'nonsense'], '--cfg-options takes KEY=VALUE, such as'),
        ('train', ['--cfg-options', '=5'], '--cfg-options takes KEY=VALUE, such as model.key=1'),
        ('train', ['--cfg-options', 'model..x=5'], '--cfg-options takes KEY=VALUE'),
        ('train', ['--cfg-options', 'model.type.x=5'], '`model.type.x` cannot be set'),
        ('train', ['--allow-changes'], '--allow-changes is for a run that goes on; add --resume'),
        ('train', ['--launcher', 'pytorch'], '--launcher pytorch, but no such launcher started'),
        (
            'train',
            ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'],
            'trains in mixed precision, which needs an accelerator',
        ),
        ('test', ['x.pth', '--out', '{file}'], '{file} is a file; a folder is needed'),
        ('test', ['x.pth', '--show-dir', '{file}'], '--show-dir {file}: {file} is a file'),
        ('test', ['x.pth', '--wait-time', '-1'], '--wait-time must be at least 0, not -1'),
        ('cache_teacher', ['--scale', '0,0'], '--scale is WIDTH,HEIGHT in pixels, not 0,0'),
        ('cache_teacher', ['--scale=-5,5'], '--scale is WIDTH,HEIGHT in pixels, not -5,5'),
        ('cache_teacher', ['--scale', '64'], '--scale is WIDTH,HEIGHT in pixels, not 64'),
        ('cache_teacher', ['--workers', '-1'], '--workers must be at least 0, not -1'),
        ('cache_teacher', ['--top-k', '0'], '--top-k must be at least 1, not 0'),
        ('cache_teacher', ['--out', '{file}'], '--out {file}: {file} is a file'),
        ('fit_connector', ['--work-dir', '{file}'], '--work-dir {file}: {file} is a file'),
        ('visualize', ['x.pth', '--out', '{file}'], '{file} is a file'),
        ('report', [], 'there is no folder'),
        ('report', ['--alone', 'nan'], '--alone must be at least 0, not nan'),
        ('report', ['--out', '{file}'], '--out {file}: expected a file that ends with .html'),
    ],
)
def test_one_line_says_what_is_wrong(
    tool: str,
    arguments: list[str],
    words: str,
    fails: Callable[..., str],
    segmentation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / 'notes.txt'
    file.write_text('kept')
    message = fails(
        tool, segmentation / 'distilled.py', *(text.format(file=file) for text in arguments)
    )
    assert words.format(file=file) in message and '\n' not in message
    assert file.read_text() == 'kept' and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an accelerator')
@pytest.mark.parametrize('tool', ['train', 'distill'])
def test_processes_of_a_launcher_need_accelerators(
    tool: str, fails: Callable[..., str], segmentation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    names = ['distilled.py'] if tool == 'train' else ['student.py', 'teacher.py', 'teacher.pth']
    message = fails(tool, *(segmentation / name for name in names), '--launcher', 'pytorch')
    assert 'gives each process an accelerator, and there is none' in message


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('x = 5\n', 'has no `model`, which this tool needs'),
        ('model = dict(\n', 'cannot be read: '),
    ],
)
def test_files_that_are_not_configs(text: str, words: str, fails, tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    config.write_text(text)
    assert words in fails('train', config, '--work-dir', tmp_path / 'run')


def test_a_file_of_another_kind_is_not_a_config(fails, tmp_path: Path) -> None:
    picture = tmp_path / 'config.png'
    picture.write_bytes(b'png')
    assert 'it must end with .py, .json, .yaml or .yml' in fails('train', picture)


def test_the_place_for_a_folder_or_a_file(tmp_path: Path) -> None:
    check_folder(tmp_path / 'new' / 'deeper', '--out')
    check_file(tmp_path / 'new' / 'out.pkl', '--out')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(UsageError, match='is a folder; a file is needed'):
        check_file(tmp_path, '--out')
    with pytest.raises(UsageError, match='--out is empty; it takes a folder'):
        check_folder('', '--out')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UsageError, match='link is a link that leads nowhere'):
        check_folder(tmp_path / 'link' / 'run', '--work-dir')


@pytest.mark.parametrize('value', [-1, float('nan'), float('inf')])
def test_numbers_beyond_their_limits(value: float) -> None:
    with pytest.raises(UsageError, match='--count must be at least 0, not'):
        check_number(value, '--count', 0)
    check_number(None, '--count', 0)
    check_number(0, '--count', 0)
    with pytest.raises(UsageError, match='--score-thr must be from 0 to 1, not 2'):
        check_number(2, '--score-thr', 0, 1)


def test_settings_reach_lists_and_new_keys() -> None:
    cfg = Config(dict(hooks=[dict(interval=1)], model=dict(width=8)))
    apply_options(cfg, {'hooks.0.interval': 5, 'model.depth': 3})
    assert cfg.hooks[0].interval == 5 and cfg.model == dict(width=8, depth=3)
    with pytest.raises(UsageError, match=r'--cfg-options: `hooks\.4\.interval` cannot be set'):
        apply_options(cfg, {'hooks.4.interval': 5})
