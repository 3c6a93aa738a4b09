"""tools/train.py and bad data: one line, before training where it can be found so early."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import needs_ops

pytestmark = pytest.mark.usefixtures('own_globals')


def trained_on(folder: Path, base: Path, file: Path, keys: tuple[str, ...], **more: str) -> Path:
    """Writes a config that trains what another trains, on data in a folder."""
    lines = [f"_base_ = ['{base / 'student.py'}']"]
    lines += [f'{key} = dict(dataset=dict(data_root={str(folder)!r}))' for key in keys]
    file.write_text('\n'.join([*lines, *(f'{key} = {text}' for key, text in more.items())]))
    return file


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be spoiled."""
    shutil.copytree(data, tmp_path / 'data')
    return tmp_path / 'data'


@pytest.mark.parametrize(
    ('key', 'spoil', 'message'),
    [
        ('train', lambda d: (d / 'masks/0.png').write_bytes(b''), 'masks/0.png: the file is empty'),
        ('train', lambda d: shutil.rmtree(d / 'images'), 'Dataset): there is no {d}/images'),
        ('val', lambda d: (d / 'images/5.png').unlink() or (d / 'masks/5.png').unlink(), None),
        ('val', lambda d: (d / 'masks/5.png').unlink(), 'val_dataloader.dataset: there is no {d}/'),
    ],
)  # fmt: skip
def test_bad_data_of_a_segmentor(
    key, spoil, message, folder, segmentation, fails, call_tool, tmp_path
):
    spoil(folder)
    config = trained_on(folder, segmentation, tmp_path / 'c.py', (f'{key}_dataloader',))
    if message is None:
        call_tool('train', config, '--work-dir', tmp_path / 'run')
        return
    said = fails('train', config, '--work-dir', tmp_path / 'run')
    assert message.format(d=folder) in said and '\n' not in said
    assert not list(tmp_path.glob('run/*.pth'))


@needs_ops
def test_bad_data_of_a_detector(folder, detection, fails, tmp_path):
    (folder / 'images/0.png').write_bytes(b'')
    config = trained_on(folder, detection, tmp_path / 'c.py', ('train_dataloader',))
    said = fails('train', config, '--work-dir', tmp_path / 'run')
    assert 'images/0.png: the file is empty' in said and '\n' not in said


def test_bad_data_that_nobody_looked_at_before(folder, segmentation, fails, tmp_path):
    """The check of three images misses the bad one, and a process that loads data finds it."""
    (folder / 'masks/1.png').write_bytes(b'')
    config = trained_on(
        folder, segmentation, tmp_path / 'c.py', ('train_dataloader',),
        custom_hooks="[dict(type='mmkd_plugin.CheckTrainingData', samples=2)]",
        train_cfg='dict(max_iters=9)',
    )  # fmt: skip
    options = ('--cfg-options', 'train_dataloader.num_workers=1')
    said = fails('train', config, '--work-dir', tmp_path / 'run', *options)
    assert said == f'train.py: error: {folder}/masks/1.png: the file is empty'


def spoiled(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def without_images(folder: Path) -> None:
    for file in (folder / 'images').iterdir():
        file.unlink()


CACHE = ['cache_teacher', '{base}/distilled.py', '--out', '{out}', '--workers']
TEST = ['test', '{base}/teacher.py', '{base}/teacher.pth', '--work-dir', '{out}']


@pytest.mark.parametrize(
    ('typed', 'spoil', 'message'),
    [
        ([*CACHE, 0], spoiled('images/2.png', b'<html>'), 'images/2.png: the file cannot be read'),
        ([*CACHE, 1], spoiled('images/5.png', b''), 'images/5.png: the file is empty'),
        ([*CACHE, 0], lambda d: shutil.rmtree(d / 'images'), 'Dataset): there is no {d}/images'),
        ([*CACHE, 0], without_images, 'has no images'),
        ([*CACHE, 0, '--scale', '999999999,999999999'], lambda d: None, '.png: Resize failed: '),
        ([*CACHE, 0, '--views', 2], spoiled('images/0.png', b'x'), 'images/0.png: the file cannot'),
        (TEST, spoiled('images/2.png', b'<html>'), 'images/2.png: the file cannot be read as'),
        (TEST, lambda d: shutil.rmtree(d / 'images'), 'test_dataloader.dataset (BaseSegDataset): '),
        (TEST, without_images, 'test_dataloader.dataset has no images: no file in {d}/images'),
        ([*TEST, 'test_evaluator.type=IoU'], lambda d: None, "evaluator.type: there is no 'IoU'"),
    ],
)  # fmt: skip
def test_bad_data_of_other_tools(
    typed: list, spoil: Callable, message: str, folder: Path, segmentation: Path, fails, tmp_path
) -> None:
    spoil(folder)
    options = [text for text in typed if '=' in str(text)]
    typed = [str(text) for text in typed if text not in options]
    typed = [text.format(base=segmentation, out=tmp_path / 'out') for text in typed]
    loader = 'train' if typed[0] == 'cache_teacher' else 'test'
    key = f'{loader}_dataloader.dataset.data_root={folder}'
    said = fails(*typed, '--cfg-options', key, *options)
    assert message.format(d=folder) in said and '\n' not in said
