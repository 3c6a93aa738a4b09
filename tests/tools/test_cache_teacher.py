"""``tools/cache_teacher.py``: it writes, goes on when killed, serves a training, and refuses."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import lmdb
import pytest
from mmengine.config import Config

from mmkd_plugin.cache.store import FINISHED, TeacherCache, close, record_key
from mmkd_plugin.checkpoint import read_checkpoint
from tests.tools.tool_runs import TOOLS, run_tool, start_tool

CACHED = 'model.teacher.type=CachedTeacher'


def records_of(path: Path) -> dict[bytes, bytes]:
    close(str(path))
    with lmdb.open(str(path), readonly=True, lock=False) as store, store.begin() as transaction:
        return dict(transaction.cursor())


@pytest.fixture(scope='module')
def cache(segmentation: Path) -> tuple[Path, str]:
    """A cache that the tool wrote, and what it printed."""
    path = segmentation / 'cache'
    return path, start_tool('cache_teacher', 'distilled.py', '--out', path, cwd=segmentation)


def test_what_it_says(cache):
    path, said = cache
    assert '): decode_head.conv_seg; 6 images and their mirror images, 0 of them in' in said
    assert ' for 6 images; free disk space ' in said
    assert '━' not in said, 'a bar where nobody looks'
    assert f'{path}: ' in said
    assert 'Traceback' not in said and 'scales images at random' not in said
    meta = TeacherCache(str(path)).meta
    assert meta['checkpoint'].endswith('teacher.pth') and meta['scale'] is None
    about = meta['taps']['decode_head.conv_seg']
    assert about['maps'] == [[3, 8, 8]] and about['classes'] == 3 and len(about['fill'][0]) == 3


def test_the_same_config_trains_with_it(cache, segmentation, tmp_path):
    path, _ = cache
    log = run_tool(
        'train',
        'distilled.py',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        CACHED,
        f'model.teacher.path={path}',
        'train_dataloader.num_workers=2',
        cwd=segmentation,
    )
    training, _, after = log.partition('Iter(train) [4/4]')
    assert f'cached in {path} (' in training and 'Loaded the teacher' not in training
    assert 'Loaded the teacher' in after  # the report asks it how often the student agrees
    assert 'distill.cwd.loss: ' in log
    assert 'mIoU: ' in log  # validation needs no maps
    weights = read_checkpoint(tmp_path / 'iter_4.pth')['state_dict']
    assert not [key for key in weights if not key.startswith(('backbone', 'decode', 'auxiliary'))]


KILLED = """
import os, runpy, signal, sys
from mmkd_plugin.cache.store import CacheWriter
write, written = CacheWriter.write, []
def killed(self, image, records):
    if len(written) == 3 and {within}:
        with self._environment.begin(write=True) as transaction:
            transaction.put(b'half', b'written')
            os.kill(os.getpid(), signal.SIGKILL)
    write(self, image, records)
    written.append(image)
    if len(written) == 3 and not {within}:
        os.kill(os.getpid(), signal.SIGKILL)
CacheWriter.write = killed
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('within', [False, True])
def test_a_killed_run_goes_on_where_it_stopped(
    within, cache, segmentation, tmp_path, monkeypatch, call_tool
):
    whole, path = cache[0], tmp_path / 'cache'
    args = ['distilled.py', '--out', str(path), '--workers', '0']
    code = KILLED.format(within=within, argv=[str(TOOLS / 'cache_teacher.py'), *args])
    done = subprocess.run([sys.executable, '-c', code], cwd=segmentation, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = records_of(path)
    assert len([key for key in left if b'\0' in key]) == 2 * 3 and FINISHED not in left
    monkeypatch.chdir(segmentation)
    with pytest.raises(ValueError, match='is not finished'):
        TeacherCache(str(path)).meta  # noqa: B018
    said = call_tool('cache_teacher', *args)
    assert '6 images and their mirror images, 3 of them in' in said
    assert records_of(path) == records_of(whole)


def test_verify(cache, segmentation, tmp_path, monkeypatch, call_tool, fails):
    monkeypatch.chdir(segmentation)
    path = tmp_path / 'cache'
    shutil.copytree(cache[0], path)
    said = call_tool('cache_teacher', 'distilled.py', '--out', path, '--verify')
    assert f'{path}: 12 records of 6 images are whole' in said

    image = 'images/4.png'
    data = records_of(path)[record_key(image, 'decode_head.conv_seg')]
    file = path / 'data.mdb'
    file.write_bytes(file.read_bytes().replace(data, data[:-1] + bytes([data[-1] ^ 1])))
    said = fails('cache_teacher', 'distilled.py', '--out', path, '--verify')
    assert f'the record of {image} (decode_head.conv_seg) is damaged' in said


def test_a_full_disk_is_noticed_before(segmentation, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(segmentation)
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(10**6, 10**6 - 900, 900))
    path = tmp_path / 'cache'
    said = fails('cache_teacher', 'distilled.py', '--out', path, '--workers', '0')
    assert 'not enough room: about ' in said and 'free disk space 900 bytes' in said
    assert not [key for key in records_of(path) if b'\0' in key]


def test_random_scales_are_said(segmentation, tmp_path, monkeypatch, call_tool, log):
    monkeypatch.chdir(segmentation)
    cfg = Config.fromfile('distilled.py')
    resize = dict(type='RandomResize', scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline.insert(2, resize)
    cfg.dump('scaled.py')
    call_tool('cache_teacher', 'scaled.py', '--out', tmp_path / 'x', '--workers', '0')
    warned = [one.getMessage() for one in log.records if one.levelname == 'WARNING']
    assert any('the train pipeline scales images at random' in text for text in warned)
    assert TeacherCache(str(tmp_path / 'x')).meta['scale']['scale'] == [64, 64]


def test_a_teacher_for_maps_of_the_student_is_not_stored(
    segmentation, tmp_path, monkeypatch, fails
):
    monkeypatch.chdir(segmentation)
    cfg = Config.fromfile('distilled.py')
    cfg.model.distill.cwd.through = 'decode_head.conv_seg@input'
    cfg.dump('through.py')
    said = fails('cache_teacher', 'through.py', '--out', tmp_path / 'x')
    assert 'distill.cwd.through: no cache can replace this teacher. It asks the teacher its' in said


def test_gradients_are_not_stored(segmentation, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(segmentation)
    text = (segmentation / 'distilled.py').read_text()
    loss = "dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=1)"
    assert loss in text
    gradients = "dict(type='mmkd_plugin.GradientAttentionLoss')"
    (segmentation / 'gradients.py').write_text(text.replace(loss, gradients))
    said = fails('cache_teacher', 'gradients.py', '--out', tmp_path / 'x')
    assert 'distill.cwd compares gradients of the task loss, which depend on the labels' in said


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['student.py', '--out', 'x'], 'student.py distils nothing'),
        (['distilled.py'], 'say where: --out PATH'),
        (['distilled.py', '--out', 'x', '--teacher', 'b'], 'there is no --teacher b; those that'),
        (['distilled.py', '--out', 'x', '--top-k', '2'], '--top-k keeps the probabilities of cla'),
        (['distilled.py', '--out', 'x', '--scale', '64'], '--scale is WIDTH,HEIGHT in pixels, no'),
        (['distilled.py', '--out', '.'], 'exists and is not a teacher cache'),
        (['distilled.py', '--out', 'x', '--views', '0'], '--views'),
        (
            ['distilled.py', '--out', 'x', '--views', '2', '--mirrored'],
            '--mirrored is for whole im',
        ),
        (
            ['distilled.py', '--out', 'x', '--top-k', '2', '--dtype', 'compact'],
            '--dtype compact keeps each class that a loss can see; leave --top-k out',
        ),
        (['distilled.py', '--out', 'x', '--channels', '2'], '--channels 2: no map has more chann'),
        (['distilled.py', '--out', 'x', '--projection', 'learnt'], 'add --channels N'),
        (['distilled.py', '--out', 'none', '--verify'], 'no teacher cache at none; write it with'),
        (
            ['distilled.py', '--out', 'cache', '--dtype', 'uint8'],
            'is a cache of something else, and is not overwritten: dtype there: float16, here: u',
        ),
        (
            ['distilled.py', '--out', 'cache', '--cfg-options', 'model.distill.cwd.tap=backbone'],
            'taps there: decode_head.conv_seg, here: backbone',
        ),
    ],
)
def test_mistakes(args, words, cache, segmentation, monkeypatch, fails):
    monkeypatch.chdir(segmentation)
    assert words in fails('cache_teacher', *args)
    assert not Path('x').exists()


def test_a_config_that_names_its_cache(cache, segmentation, monkeypatch, call_tool):
    monkeypatch.chdir(segmentation)
    options = ['--cfg-options', CACHED, f'model.teacher.path={cache[0]}']
    said = call_tool('cache_teacher', 'distilled.py', *options)
    assert f'6 images and their mirror images, 6 of them in {cache[0]} already' in said
