"""The store: numbers, checksums, what is refused, several processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest

from mmkd_plugin.cache import store as teacher_cache
from mmkd_plugin.cache.cosines import waves
from mmkd_plugin.cache.costs import softmax
from mmkd_plugin.cache.records import STEPS
from mmkd_plugin.cache.sizes import check_space, stored_size
from mmkd_plugin.cache.store import (
    CacheError,
    CacheWriter,
    Record,
    TeacherCache,
    _check_size,
    close,
    fill_top,
    human_size,
    keep_top,
    pack,
    record_key,
    to_float16,
    to_uint8,
    unpack,
)

META = dict(weights='a' * 64, config='b' * 64, taps={'neck': {}}, dtype='float16', top_k=None)
META.update(mirrored=False)


def maps_of(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def fill(path: Path, images: int = 3, **meta: object) -> dict[str, Record]:
    """A finished cache of random records."""
    records = {
        f'img/{i}.png': Record([maps_of(4, 3, 5, seed=i), maps_of(4, 2, 3, seed=-i - 1 + 9)],
                               (20, 40), (24, 48))
        for i in range(images)
    }  # fmt: skip
    with CacheWriter(str(path), META | meta) as writer:
        for image, record in records.items():
            writer.write(image, {'neck': pack(record, record_key(image, 'neck'))})
        writer.finish()
    return records


# --- numbers --------------------------------------------------------------------------------------


def test_float16_is_that_of_numpy_where_that_is_exact():
    maps = maps_of(3, 8, 8, scale=20)
    values, shift = to_float16(maps)
    assert np.array_equal(
        np.ldexp(values.astype(np.float32), -shift), maps.astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize('scale', [1e9, 1e-12, 0.0])
def test_float16_keeps_its_digits_at_any_scale(scale):
    maps = maps_of(3, 8, 8, scale=scale)
    values, shift = to_float16(maps)
    back = np.ldexp(values.astype(np.float64), -shift)
    assert np.isfinite(values).all()
    assert (np.abs(back - maps) <= np.abs(maps).max() * 2.0**-11).all()


@pytest.mark.parametrize('scale', [1.0, 1e7, 1e-9])
def test_uint8_is_off_by_half_a_step_at_most(scale):
    maps = maps_of(6, 16, 16, scale=scale)
    maps[1] += 40 * scale  # another range
    maps[2] = 3 * scale  # no range
    record = Record([maps], (1, 1), (1, 1))
    back = unpack(pack(record, b'key', 'uint8'), b'key').maps[0]
    for channel, other in zip(maps.astype(np.float64), back, strict=True):
        spread = channel.max() - channel.min()
        # half precision rounds the smallest value and the step
        allowed = spread / 255 * 0.5 + (np.abs(channel).max() + spread) * 2.0**-11
        assert np.abs(channel - other).max() <= allowed
    levels, scales, _ = to_uint8(maps)
    assert levels[0].min() == 0 and levels[0].max() == 255
    assert scales.shape == (2, 6)


def test_the_largest_logits_keep_their_probabilities():
    logits = maps_of(19, 4, 6, scale=4)
    kept, classes = keep_top(logits, 3)
    back = fill_top(kept, classes, 19).astype(np.float64)

    def softmax(x: np.ndarray) -> np.ndarray:
        exp = np.exp(x.astype(np.float64))
        return exp / exp.sum(0)

    whole, again = softmax(logits), softmax(back)
    order = np.argsort(-logits, axis=0)
    top, rest = order[:3], order[3:]
    take = np.take_along_axis
    assert np.allclose(take(again, top, 0), take(whole, top, 0), rtol=1e-5)
    shared = take(whole, rest, 0).mean(0, keepdims=True)
    assert np.allclose(take(again, rest, 0), shared, rtol=1e-5)
    assert np.array_equal(take(back, top, 0), take(logits, top, 0).astype(np.float64))


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_roots_keep_the_probabilities_that_losses_see(tau):
    logits = maps_of(19, 16, 16, scale=5)
    record = Record([logits], (64, 64), (64, 64), [1.0, 2.5])
    data = pack(record, b'key', 'compact', tau=tau)
    back = unpack(data, b'key')
    assert back.picture == record.picture and back.maps[0].shape == logits.shape
    whole, again = softmax(logits / tau), softmax(back.maps[0] / tau)
    steps = np.sqrt(whole) * STEPS
    assert np.abs(np.sqrt(again) * STEPS - steps).max() < 1  # half a step, and what became 0
    assert np.array_equal(whole.argmax(0), again.argmax(0)) or np.abs(whole - again).max() < 0.07
    divergence = (whole * np.log(whole / again)).sum(0).mean()
    assert 0 < divergence < 5e-3
    assert len(data) < len(pack(record, b'key')) / (4 if tau == 1 else 2)
    assert len(pack(record, b'key', 'compact')) > 1.5 * len(data)  # 256 steps where all counts


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_cosines_keep_the_probabilities_of_smooth_maps_in_half_the_size(tau):
    corners = np.random.default_rng(0).normal(0, 10, (11, 4, 4)).astype(np.float32)
    size = dict(dsize=(66, 53), interpolation=cv2.INTER_CUBIC)  # no whole blocks
    logits = np.stack([cv2.resize(one, **size) for one in corners])
    record = Record([logits], (212, 264), (212, 264))
    data = pack(record, b'key', 'smallest', tau=tau)
    back = unpack(data, b'key').maps[0]
    assert back.shape == logits.shape and back.dtype == np.float32
    whole, again = softmax(logits / tau), softmax(back / tau)
    assert np.abs(whole - again).mean() < 5e-3 and np.abs(whole - again).max() < 0.15
    assert 0 < (whole * np.log(whole / again)).sum(0).mean() < 4e-3
    assert (whole.argmax(0) == again.argmax(0)).mean() > 0.95
    assert len(data) < 0.5 * len(pack(record, b'key', 'compact', tau=tau))
    assert len(data) < 0.05 * 2 * logits.size
    assert np.allclose(waves() @ waves().T, np.eye(16), atol=1e-6)
    one = unpack(
        pack(Record([logits[:, :1, :3]], (4, 12), (4, 12)), b'key', 'smallest', tau=tau), b'key'
    )
    assert np.abs(softmax(one.maps[0] / tau) - whole[:, :1, :3]).max() < 0.2


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float16', 'uint8'])
@pytest.mark.parametrize('k', [None, 2])
def test_a_record_comes_back(dtype, k):
    record = Record([maps_of(5, 3, 7), maps_of(5, 1, 1, seed=1)], (33, 65), (30, 61))
    back = unpack(pack(record, b'key', dtype, k), b'key')
    assert (back.loaded, back.seen) == ((33, 65), (30, 61))
    for ours, theirs in zip(record.maps, back.maps, strict=True):
        assert theirs.dtype == np.float32 and theirs.shape == ours.shape
        tolerance = 1e-3 if dtype == 'float16' else 2e-2
        if k is None:
            assert np.abs(ours - theirs).max() < tolerance * np.abs(ours).max()
        else:
            assert np.abs(ours.max(0) - theirs.max(0)).max() < tolerance * np.abs(ours).max()


def test_a_changed_or_misplaced_record_is_noticed():
    record = Record([maps_of(2, 3, 3)], (6, 6), (6, 6))
    data = pack(record, b'key')
    unpack(data, b'key')
    for position in (3, 20, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(CacheError, match='checksum'):
            unpack(bytes(changed), b'key')
    for wrong in (data[:-1], data[:5], b''):
        with pytest.raises(CacheError, match='checksum'):
            unpack(wrong, b'key')
    with pytest.raises(CacheError, match='checksum'):
        unpack(data, b'another')


def test_a_key_of_a_long_path_fits():
    one, other = (record_key('a/' * 400 + name, 'neck') for name in ('1.png', '2.png'))
    assert one != other and len(one) < 511


# --- the store ------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    records = fill(tmp_path / 'cache')
    cache = TeacherCache(str(tmp_path / 'cache'))
    assert cache.meta['dtype'] == 'float16'
    assert sorted(cache.keys()) == [(image, 'neck') for image in records]
    assert cache.missing([*records, 'img/9.png']) == ['img/9.png']
    for image, record in records.items():
        back = cache.read(image, 'neck')
        for ours, theirs in zip(record.maps, back.maps, strict=True):
            assert np.array_equal(theirs, ours.astype(np.float16).astype(np.float32))
    with pytest.raises(CacheError, match=r'holds no .*neck.* of img/9\.png'):
        cache.read('img/9.png', 'neck')


def test_the_store_grows(tmp_path):
    with CacheWriter(str(tmp_path), META) as writer:
        noise = np.random.default_rng(0).bytes(4_000_000)
        for i in range(20):
            writer.write(str(i), {'neck': noise})
        assert writer.missing([str(i) for i in range(21)], ['neck']) == ['20']
    assert (tmp_path / 'data.mdb').stat().st_size > 2**26  # the room that it has at first


def test_an_unfinished_cache_is_not_read_but_goes_on(tmp_path):
    with CacheWriter(str(tmp_path), META) as writer:
        writer.write('1', {'neck': b'x'})
    with pytest.raises(CacheError, match=r'is not finished; run tools/cache_teacher\.py again'):
        TeacherCache(str(tmp_path)).meta  # noqa: B018
    with CacheWriter(str(tmp_path), META) as writer:
        assert writer.missing(['1', '2'], ['neck']) == ['2']
        writer.finish()
    assert TeacherCache(str(tmp_path)).meta['taps'] == {'neck': {}}


def hold(path: str, ready: Any, stop: Any) -> None:
    with CacheWriter(path, META):
        ready.set()
        stop.wait()


def test_a_second_writer_is_kept_out(tmp_path):
    context = multiprocessing.get_context('fork')
    ready, stop = context.Event(), context.Event()
    path = str(tmp_path / 'cache')
    process = context.Process(target=hold, args=(path, ready, stop))
    process.start()
    ready.wait()
    with pytest.raises(CacheError, match=r'process \d+ on .* writes it already; wait until it has'):
        CacheWriter(path, META)
    stop.set()
    process.join()
    CacheWriter(path, META).close()


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('weights', 'c' * 64, 'weights of the teacher there: aaaaaaaaaaaa, here: cccccccccccc'),
        ('taps', {'neck': {}, 'head': {}}, 'taps there: neck, here: head, neck'),
        ('dtype', 'uint8', 'dtype there: float16, here: uint8'),
        ('scale', dict(type='Resize'), 'scale there: None, here: '),
    ],
)
def test_another_fingerprint_is_not_overwritten(tmp_path, key, value, words):
    fill(tmp_path)
    before = (tmp_path / 'data.mdb').read_bytes()
    with pytest.raises(CacheError, match='is a cache of something else') as caught:
        CacheWriter(str(tmp_path), META | {key: value})
    assert words in str(caught.value)
    assert (tmp_path / 'data.mdb').read_bytes() == before
    fill(tmp_path)  # the same one may be opened again


def test_what_is_no_cache_is_left_alone(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(CacheError, match='exists and is not a teacher cache'):
        CacheWriter(str(tmp_path), META)
    with pytest.raises(CacheError, match='exists and is not a teacher cache'):
        CacheWriter(str(tmp_path / 'file'), META)
    (tmp_path / 'other').mkdir()
    with lmdb.open(str(tmp_path / 'other')) as other, other.begin(write=True) as transaction:
        transaction.put(b'theirs', b'1')
    with pytest.raises(CacheError, match='is a store, but not a teacher cache'):
        CacheWriter(str(tmp_path / 'other'), META)
    with pytest.raises(CacheError, match='is a store, but not a teacher cache'):
        TeacherCache(str(tmp_path / 'other')).meta  # noqa: B018
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'data.mdb').write_bytes(b'x' * 10_000)
    with pytest.raises(CacheError, match='is not a teacher cache, or is damaged'):
        TeacherCache(str(tmp_path / 'broken')).meta  # noqa: B018
    with pytest.raises(CacheError, match=r'no teacher cache at .*; write it with'):
        TeacherCache(str(tmp_path / 'none')).meta  # noqa: B018


def damage(path: Path, image: str, tap: str) -> None:
    """Changes one byte of a record in the file itself."""
    close(str(path))
    with lmdb.open(str(path), map_size=2**26) as store, store.begin() as transaction:
        data = transaction.get(record_key(image, tap))
    changed = bytearray(data)
    changed[len(data) // 2] ^= 16
    file = path / 'data.mdb'  # pages of earlier transactions hold copies
    file.write_bytes(file.read_bytes().replace(data, changed))


def test_a_damaged_record_names_the_image(tmp_path):
    fill(tmp_path)
    damage(tmp_path, 'img/1.png', 'neck')
    cache = TeacherCache(str(tmp_path))
    cache.read('img/0.png', 'neck')
    with pytest.raises(CacheError, match=r'the record of img/1\.png \(neck\) is damaged'):
        cache.read('img/1.png', 'neck')


@pytest.mark.parametrize('kept', [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_store_that_was_cut_is_refused(tmp_path, kept):
    fill(tmp_path, images=8)
    file = tmp_path / 'data.mdb'
    os.truncate(file, int(file.stat().st_size * kept))
    with pytest.raises(CacheError, match=r'was cut: it has|is damaged'):
        TeacherCache(str(tmp_path)).meta  # noqa: B018
    with pytest.raises(CacheError, match=r'was cut: it has|is damaged'):
        CacheWriter(str(tmp_path), META)


def test_a_store_is_whole_after_each_image(tmp_path):
    with CacheWriter(str(tmp_path), META) as writer:
        for length in (10, 5000, 100_000, 3, 20_000):
            for image in 'ab':  # the second time it replaces the first
                writer.write(image, {'neck': bytes(length), 'head': bytes(length // 2)})
                _check_size(writer._environment, writer.path)
        writer.finish()


def _read(path: str, queue: multiprocessing.Queue) -> None:
    cache = TeacherCache(path)
    queue.put([float(cache.read(f'img/{i}.png', 'neck').maps[0].sum()) for i in range(3)])


def test_processes_read_at_once(tmp_path):
    records = fill(tmp_path)
    cache = TeacherCache(str(tmp_path))
    cache.read('img/0.png', 'neck')  # open here, before the fork
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=_read, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    seen = [queue.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    cache.read('img/1.png', 'neck')
    expected = [r.maps[0].astype(np.float16).astype(np.float32).sum() for r in records.values()]
    assert np.allclose(seen, [expected, expected])


@pytest.mark.parametrize('size', [None, 0, 4096])
def test_a_writer_that_was_killed_at_once_can_start_anew(tmp_path, size):
    (tmp_path / 'lock.mdb').write_bytes(bytes(100))
    if size is not None:
        (tmp_path / 'data.mdb').write_bytes(bytes(size))
    with CacheWriter(str(tmp_path), META) as writer:
        writer.write('0', {'neck': b'first'})
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'data.mdb').write_bytes(b'no store')
    with pytest.raises(CacheError):
        CacheWriter(str(mine), META)
    assert (mine / 'data.mdb').read_bytes() == b'no store'


def test_the_order_of_taps_makes_no_other_cache(tmp_path):
    about = META['taps']['neck']
    with CacheWriter(str(tmp_path), dict(META, taps=dict(neck=about, head=about))) as writer:
        writer.write('0', {'neck': b'first', 'head': b'first'})
    with CacheWriter(str(tmp_path), dict(META, taps=dict(head=about, neck=about))) as writer:
        assert writer.missing(['0', '1'], ['head', 'neck']) == ['1']


@pytest.mark.parametrize('moment', ['within', 'between'])
def test_a_killed_writer_leaves_whole_records(tmp_path, moment):
    def write(path: str) -> None:
        with CacheWriter(path, META) as writer:
            writer.write('0', {'neck': b'first', 'head': b'first'})
            if moment == 'between':
                os.kill(os.getpid(), signal.SIGKILL)
            with writer._environment.begin(write=True) as transaction:
                transaction.put(record_key('1', 'neck'), b'half' * 100_000)
                os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context('fork').Process(target=write, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with CacheWriter(str(tmp_path), META) as writer:
        assert writer.missing(['0', '1'], ['neck', 'head']) == ['1']
        writer.write('1', {'neck': b'second', 'head': b'second'})
        writer.finish()
    assert sorted(TeacherCache(str(tmp_path)).keys()) == [
        ('0', 'head'), ('0', 'neck'), ('1', 'head'), ('1', 'neck')
    ]  # fmt: skip


# --- room and libraries ---------------------------------------------------------------------------


def test_too_little_room_is_said_before(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(10**12, 0, 69 * 10**9))
    path = str(tmp_path / 'not' / 'there')
    said = check_space(path, 12_300_000_000, 2975)
    assert said == 'about 12.3 GB for 2975 images; free disk space 69.0 GB'
    with pytest.raises(CacheError, match=r'not enough room: about 70\.0 GB for 2975 images'):
        check_space(path, 70_000_000_000, 2975)


def test_the_size_of_records_is_estimated_well(tmp_path):
    noise = np.random.default_rng(0)
    records = [{'neck': noise.bytes(n), 'head': noise.bytes(30)} for n in range(3000, 60_000, 700)]
    with CacheWriter(str(tmp_path), META) as writer:
        for i, record in enumerate(records):
            writer.write(str(i), record)
    real = (tmp_path / 'data.mdb').stat().st_blocks * 512
    assert 0.8 < sum(map(stored_size, records)) / real < 1.2


@pytest.mark.parametrize(
    ('count', 'text'),
    [(0, '0 bytes'), (999, '999 bytes'), (1000, '1.0 kB'), (10**13, '10000.0 GB')],
)
def test_sizes_in_words(count, text):
    assert human_size(count) == text


@pytest.mark.parametrize('name', ['lmdb', 'zstandard'])
def test_a_missing_library_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CacheError, match=f'needs the package {name}: pip install lmdb zstandard'):
        teacher_cache.libraries()
