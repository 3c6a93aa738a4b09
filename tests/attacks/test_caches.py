"""Damaged and crafted caches: what is read is what was written, or one line says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmkd_plugin.cache.records import CacheError, Record, digest, libraries, unpack
from mmkd_plugin.cache.store import META, CacheWriter, TeacherCache, close, pack, record_key
from mmkd_plugin.saving import WriteError
from tests.attacks.harness import fork
from tests.cache.test_store import META as SETTINGS
from tests.cache.test_store import fill

KEY = record_key('img/0.png', 'neck')


def packed(header: Any, arrays: bytes = b'', tail: bytes = b'') -> bytes:
    """A record with the right checksum."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = (
        libraries()[1]
        .ZstdCompressor()
        .compress(struct.pack('<I', len(text)) + text + arrays + tail)
    )
    return digest(KEY, body) + body


def header(**changes: Any) -> dict:
    note = dict(shape=[1, 2, 2], shift=0, dtype='float16')
    note.update(changes.pop('note', {}))
    return {'loaded': [4, 4], 'seen': [4, 4], 'maps': [note], **changes}


def raw(body: bytes) -> bytes:
    return digest(KEY, body) + body


DATA = np.zeros(4, np.float16).tobytes()
CRAFTED: dict[str, Callable[[], bytes]] = {
    'empty': lambda: b'',
    'a digest alone': lambda: raw(b''),
    'not compressed': lambda: raw(b'x' * 50),
    'compressed nothing': lambda: raw(libraries()[1].ZstdCompressor().compress(b'')),
    'three bytes': lambda: raw(libraries()[1].ZstdCompressor().compress(b'abc')),
    'a cut frame': lambda: raw(packed(header(), DATA)[16:-4]),
    'a bomb': lambda: raw(libraries()[1].ZstdCompressor().compress(bytes(2**30 + 1))),
    'no size': lambda: raw(
        libraries()[1].ZstdCompressor(write_content_size=False).compress(DATA * 9)
    ),
    'no header': lambda: packed(b''),
    'text': lambda: packed(b'not json'),
    'a list': lambda: packed([]),
    'null': lambda: packed(None),
    'no maps': lambda: packed(dict(loaded=[4, 4], seen=[4, 4])),
    'maps is a number': lambda: packed(header(maps=5)),
    'maps of text': lambda: packed(header(maps=['x'])),
    'no shape': lambda: packed(header(maps=[dict(shift=0, dtype='float16')]), DATA),
    'negative shape': lambda: packed(header(note=dict(shape=[-1, 2, 2])), DATA),
    'a huge shape': lambda: packed(header(note=dict(shape=[2**40, 2**20, 2])), DATA),
    'overflowing shape': lambda: packed(header(note=dict(shape=[2**62, 4, 4])), DATA),
    'a shape of text': lambda: packed(header(note=dict(shape='abc')), DATA),
    'a smaller shape': lambda: packed(header(note=dict(shape=[1, 1, 2])), DATA),
    'an empty shape': lambda: packed(header(note=dict(shape=[])), DATA),
    'no dtype': lambda: packed(header(maps=[dict(shape=[1, 2, 2], shift=0)]), DATA),
    'no shift': lambda: packed(header(maps=[dict(shape=[1, 2, 2], dtype='float16')]), DATA),
    'shift of text': lambda: packed(header(note=dict(shift='a')), DATA),
    'k of text': lambda: packed(header(note=dict(k='a')), DATA),
    'k too large': lambda: packed(header(note=dict(k=9)), DATA),
    'too few bytes': lambda: packed(header(), DATA[:-1]),
    'too many bytes': lambda: packed(header(), DATA, b'x'),
    'roots without tau': lambda: packed(header(note=dict(dtype='roots', lost=0.1)), DATA[:4]),
    'roots of text': lambda: packed(header(note=dict(dtype='roots', lost='a', tau=1.0)), DATA[:4]),
    'waves without tau': lambda: packed(header(note=dict(dtype='cosines', lost=0.1)), bytes(16)),
    'waves of text': lambda: packed(
        header(note=dict(dtype='cosines', lost='a', tau=1.0)), bytes(16)
    ),
    'waves of a flat map': lambda: packed(
        header(note=dict(dtype='cosines', lost=0.1, tau=1.0, shape=[1, 4])), bytes(16)
    ),
    'too few waves': lambda: packed(
        header(note=dict(dtype='cosines', lost=0.1, tau=1.0)), bytes(15)
    ),
    'parts of text': lambda: packed(
        header(note=dict(dtype='cosines', lost=0.1, tau=1.0, parts='abc')), b''
    ),
    'parts that are not there': lambda: packed(
        header(note=dict(dtype='cosines', lost=0.1, tau=1.0, parts=[9, 9, 9])), b''
    ),
    'waves of many blocks': lambda: packed(
        header(
            note=dict(dtype='cosines', lost=0.1, tau=1.0, parts=[1, 1, 1], shape=[1, 2**20, 2**20])
        ),
        b'',
    ),
    'a picture of text': lambda: packed(header(picture=['a']), DATA),
    'no loaded': lambda: packed(dict(seen=[4, 4], maps=[]), b''),
    'loaded is a number': lambda: packed(header(loaded=5), DATA),
    'seen is null': lambda: packed(header(seen=None), DATA),
}


@pytest.mark.parametrize('name', CRAFTED)
def test_a_crafted_record(name: str) -> None:
    with pytest.raises(CacheError):
        unpack(CRAFTED[name](), KEY)


def test_the_pattern_of_the_crafted_ones_is_right() -> None:
    assert isinstance(unpack(packed(header(), DATA), KEY), Record)


@pytest.mark.parametrize('channels', [[3, 4], [4], [4, 4, 4]])
def test_a_record_of_other_channels_than_its_tap(channels: list[int], tmp_path: Path) -> None:
    path = tmp_path / 'cache'
    fill(path, taps={'neck': dict(maps=[(c, 8, 8) for c in channels])})
    with pytest.raises(CacheError, match=r'img/0\.png \(neck\) is damaged: its maps have \[4, 4\]'):
        TeacherCache(str(path)).read('img/0.png', 'neck')
    close(str(path))


def check_whole(path: Path, records: dict[str, Record]) -> None:
    """Reads all of a cache, as a verification does, and compares it with what was written."""
    cache = TeacherCache(str(path))
    try:
        assert cache.missing(list(records)) == []
        for image, tap in cache.keys():  # noqa: SIM118
            for ours, theirs in zip(records[image].maps, cache.read(image, tap).maps, strict=True):
                assert np.array_equal(theirs, ours.astype(np.float16).astype(np.float32))
    except (CacheError, FileNotFoundError) as error:
        raise SystemExit(f'x.py: error: {error}') from error


def ends_well(path: Path, records: dict[str, Record], folder: Path) -> str:
    """How reading a cache fell short in a process of its own, '' if it did not."""
    ending = fork(lambda: check_whole(path, records), folder)
    return '' if ending.status in (0, 1) and not ending.raw else f'{ending.status} {ending.message}'


def test_caches_that_were_cut(tmp_path: Path) -> None:
    records = fill(tmp_path / 'whole')
    whole = (tmp_path / 'whole' / 'data.mdb').read_bytes()
    path = tmp_path / 'cut'
    path.mkdir()
    cuts = [0, 1, 100, 4095, 4096, 4097, *range(8192, len(whole), 4096), len(whole) - 1]
    for length in cuts:
        (path / 'data.mdb').write_bytes(whole[:length])
        assert not ends_well(path, records, tmp_path / 'log'), length


def test_caches_with_changed_bytes(tmp_path: Path) -> None:
    records = fill(tmp_path / 'whole')
    whole = (tmp_path / 'whole' / 'data.mdb').read_bytes()
    path, draw = tmp_path / 'flipped', np.random.default_rng(0)
    path.mkdir()
    faults = []
    for place in sorted(draw.choice(len(whole), 60, replace=False).tolist()):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        (path / 'data.mdb').write_bytes(changed)
        fault = ends_well(path, records, tmp_path / 'log')
        faults += [f'{place}: {fault}'] if fault else []
    assert not faults


@pytest.mark.parametrize('meta', [b'', b'x', b'5', b'null', b'{}', b'[]', b'{"format": 1}'])
def test_descriptions_with_the_right_checksum(meta: bytes, tmp_path: Path) -> None:
    fill(tmp_path / 'cache')
    lmdb, _ = libraries()
    with lmdb.open(str(tmp_path / 'cache')) as environment, environment.begin(write=True) as writes:
        writes.put(META, digest(META, meta) + meta)
    with pytest.raises(CacheError):
        TeacherCache(str(tmp_path / 'cache')).meta  # noqa: B018
    close(str(tmp_path / 'cache'))


@pytest.mark.parametrize('kind', ['loop', 'nowhere', 'folder', 'device', 'fifo'])
def test_a_store_that_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / 'cache'
    path.mkdir()
    file = path / 'data.mdb'
    if kind == 'loop':
        file.symlink_to(file)
    elif kind == 'nowhere':
        file.symlink_to(tmp_path / 'nothing')
    elif kind == 'folder':
        file.mkdir()
    elif kind == 'device':
        file.symlink_to('/dev/null')
    else:
        os.mkfifo(file)
    with pytest.raises(CacheError):
        TeacherCache(str(path)).meta  # noqa: B018


@pytest.mark.parametrize('link', ['.lock', 'lock.mdb', 'data.mdb'])
def test_a_writer_leaves_what_lies_behind_a_link(link: str, tmp_path: Path) -> None:
    mine, path = tmp_path / 'mine', tmp_path / 'cache'
    mine.write_text('mine')
    path.mkdir()
    (path / link).symlink_to(mine)
    with contextlib.suppress(CacheError, WriteError):
        fill(path)
    assert mine.read_text() == 'mine'
    close(str(path))


def test_names_of_images_that_point_outside_are_names(tmp_path: Path) -> None:
    names = ['../../x', '/etc/passwd', 'a/../../b', '', '\0', '\u202e']
    record = Record([np.zeros((1, 2, 2), np.float32)], (4, 4), (4, 4))
    with CacheWriter(str(tmp_path / 'cache'), SETTINGS) as writer:
        for name in names:
            writer.write(name, {'neck': pack(record, record_key(name, 'neck'))})
        writer.finish()
    cache = TeacherCache(str(tmp_path / 'cache'))
    assert cache.missing(names) == []
    assert all(np.array_equal(cache.read(n, 'neck').maps[0], record.maps[0]) for n in names)
    assert sorted(one.name for one in tmp_path.rglob('*')) == [
        '.lock',
        'cache',
        'data.mdb',
        'lock.mdb',
    ]
    close(str(tmp_path / 'cache'))


def test_a_link_to_a_whole_cache_is_read(tmp_path: Path) -> None:
    records = fill(tmp_path / 'whole')
    (tmp_path / 'link').symlink_to(tmp_path / 'whole')
    check_whole(tmp_path / 'link', records)
    close(str(tmp_path / 'link'))
    shutil.copytree(tmp_path / 'whole', tmp_path / 'copy')
    check_whole(tmp_path / 'copy', records)
    close(str(tmp_path / 'copy'))
