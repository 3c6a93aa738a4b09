"""A teacher's maps on disk: one record for each image and tap, in a key-value store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
DTYPES = ('float16', 'uint8')

#: Between the name of an image and that of a tap in a key; no path holds it.
SEPARATOR = '\0'
META = b'meta'
FINISHED = b'finished'

_DIGEST = 16
_PAGE = 4096


class CacheError(ValueError):
    """A cache that cannot be read or written; the message says why and what to do."""


def libraries() -> tuple[Any, Any]:
    """The store and the compressor, which only caches need.

    Raises:
        CacheError: If one of them is not installed.
    """
    try:
        import lmdb
        import zstandard
    except ImportError as error:
        raise CacheError(
            f'a cached teacher needs the package {error.name}: pip install lmdb zstandard'
        ) from error
    return lmdb, zstandard


# Numbers ------------------------------------------------------------------------------------------


def to_float16(maps: np.ndarray) -> tuple[np.ndarray, int]:
    """Rounds maps to half precision after a shift by a power of two that makes use of its range.

    Nothing overflows, and what is far smaller than 1 (a gradient, say) keeps its digits. Where
    half precision itself loses none of them, the result is that of rounding to it, bit for bit.

    Args:
        maps (np.ndarray): ``(C, H, W)``, float32.

    Returns:
        tuple: ``(C, H, W)`` in float16, and n: the maps were multiplied by 2ⁿ.
    """
    peak = float(np.abs(maps).max(initial=0))
    shift = 15 - int(np.frexp(peak)[1]) if peak else 0
    return np.ldexp(maps, shift).astype(np.float16), shift


def to_uint8(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Rounds each channel to 256 steps between its smallest and its largest value.

    Args:
        maps (np.ndarray): ``(C, H, W)``, float32.

    Returns:
        tuple: ``(C, H, W)`` in uint8; smallest value and step, ``(2, C)`` in float16; and n: both
        were multiplied by 2ⁿ.
    """
    peak = float(np.abs(maps).max(initial=0))
    shift = 14 - int(np.frexp(peak)[1]) if peak else 0  # the range is twice the peak
    maps = np.ldexp(maps, shift)
    low, high = maps.min((1, 2)), maps.max((1, 2))
    scale = np.stack([low, (high - low) / 255]).astype(np.float16)
    low, step = scale.astype(np.float32)[:, :, None, None]
    levels = np.divide(maps - low, step, out=np.zeros_like(maps), where=step > 0)
    return np.rint(levels).clip(0, 255).astype(np.uint8), scale, shift


def keep_top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest logits of each position, and one for all others.

    The others share their probability evenly, so that a softmax over what :func:`fill_top` makes of
    it gives the k classes their probabilities.

    Args:
        logits (np.ndarray): ``(C, H, W)``.
        k (int): Below C.

    Returns:
        tuple: ``(k + 1, H, W)``, the logits in falling order and that of the others; ``(k, H, W)``,
        their classes.
    """
    order = np.argsort(-logits, axis=0, kind='stable')
    kept = np.take_along_axis(logits, order, 0)
    others = kept[k:].astype(np.float64)
    top = others.max(0)
    mean = np.log(np.exp(others - top).mean(0)) + top
    classes = order[:k].astype(np.uint8 if len(logits) <= 256 else np.uint16)
    return np.concatenate([kept[:k], mean[None].astype(np.float32)]), classes


def fill_top(kept: np.ndarray, classes: np.ndarray, channels: int) -> np.ndarray:
    """Logits ``(C, H, W)`` of what :func:`keep_top` left of them."""
    logits = np.repeat(kept[-1:], channels, axis=0)
    np.put_along_axis(logits, classes.astype(np.int64), kept[:-1], 0)
    return logits


# Records ------------------------------------------------------------------------------------------


@dataclass
class Record:
    """What a tap showed of one image.

    Args:
        maps (list[np.ndarray]): ``(C, H, W)``, float32.
        loaded (tuple[int, int]): Height and width of the image as it was loaded, pixels.
        seen (tuple[int, int]): Height and width at which the teacher saw it, before padding.
    """

    maps: list[np.ndarray]
    loaded: tuple[int, int]
    seen: tuple[int, int]


def pack(record: Record, key: bytes, dtype: str = 'float16', top_k: int | None = None) -> bytes:
    """Writes a record as bytes: a checksum, then a compressed header and arrays.

    Args:
        record (Record): The record.
        key (bytes): Where it is going to be; the checksum is over it too.
        dtype (str): ``'float16'`` or ``'uint8'``. Defaults to ``'float16'``.
        top_k (int, optional): Keep so many of the channels, which are logits. Defaults to None,
            all of them.
    """
    header, arrays = dict(loaded=record.loaded, seen=record.seen, maps=[]), []
    for maps in record.maps:
        note: dict[str, Any] = dict(shape=maps.shape)
        if top_k is not None:
            maps, classes = keep_top(maps, top_k)
            note['k'] = top_k
            arrays.append(classes)
        if dtype == 'uint8':
            values, scale, note['shift'] = to_uint8(maps)
            arrays += [values, scale]
        else:
            values, note['shift'] = to_float16(maps)
            arrays.append(values)
        header['maps'].append(dict(note, dtype=dtype))
    text = json.dumps(header).encode()
    body = b''.join([struct.pack('<I', len(text)), text, *(a.tobytes() for a in arrays)])
    body = libraries()[1].ZstdCompressor().compress(body)
    return _digest(key, body) + body


def unpack(data: bytes, key: bytes) -> Record:
    """Reads what :func:`pack` wrote.

    Raises:
        CacheError: If the checksum does not fit.
    """
    digest, body = bytes(data[:_DIGEST]), data[_DIGEST:]
    if _digest(key, body) != digest:
        raise CacheError('its checksum does not fit')
    body = libraries()[1].ZstdDecompressor().decompress(body)
    start = 4 + struct.unpack_from('<I', body)[0]
    header = json.loads(body[4:start])

    def take(dtype: Any, *shape: int) -> np.ndarray:
        nonlocal start
        array = np.frombuffer(body, dtype, int(np.prod(shape)), start).reshape(shape)
        start += array.nbytes
        return array

    maps = []
    for note in header['maps']:
        channels, *size = note['shape']
        k = note.get('k')
        if k is not None:
            classes = take(np.uint8 if channels <= 256 else np.uint16, k, *size)
        count = channels if k is None else k + 1
        if note['dtype'] == 'uint8':
            values = take(np.uint8, count, *size).astype(np.float32)
            low, step = take(np.float16, 2, count).astype(np.float32)[:, :, None, None]
            values = values * step + low
        else:
            values = take(np.float16, count, *size).astype(np.float32)
        values = np.ldexp(values, -note['shift'])
        maps.append(values if k is None else fill_top(values, classes, channels))
    return Record(maps, tuple(header['loaded']), tuple(header['seen']))


def _digest(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, key=hashlib.sha256(key).digest()).digest()


def record_key(image: str, tap: str) -> bytes:
    """The key of a record; of a long path its hash, since the store takes 511 bytes."""
    name = image.encode()
    if len(name) > 300:
        name = b'sha256:' + hashlib.sha256(name).hexdigest().encode()
    return name + SEPARATOR.encode() + tap.encode()


def mirrored(tap: str) -> str:
    """The name by which the maps of the mirrored image are stored."""
    return f'{tap} mirrored'


def record_names(meta: Mapping[str, Any]) -> list[str]:
    """The names of the records of an image, in a cache that says this of itself."""
    taps = list(meta['taps'])
    return taps + [mirrored(tap) for tap in taps] if meta.get('mirrored') else taps


#: What makes two caches the same, and what messages call it.
FINGERPRINT = dict(
    weights='weights of the teacher',
    config='config of the teacher',
    taps='taps',
    loading='loading of images',
    scale='scale',
    dtype='dtype',
    top_k='top-k',
    mirrored='mirrored images',
)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what the fingerprints of two caches differ, in words.

    Args:
        there (Mapping): What the cache on disk says of itself.
        here (Mapping): What it should say.

    Examples:
        >>> differences(dict(dtype='uint8'), dict(dtype='float16'))
        ['dtype there: uint8, here: float16']
    """
    found = []
    for key, words in FINGERPRINT.items():
        old, new = (_shown(key, meta.get(key)) for meta in (there, here))
        if old != new:
            found.append(f'{words} there: {old}, here: {new}')
    return found


def _shown(key: str, value: Any) -> str:
    if key in ('weights', 'config'):
        return str(value)[:12]
    return ', '.join(value or ()) if key == 'taps' else str(value)


# The store ----------------------------------------------------------------------------------------

#: Open stores by their path, each with the process that opened it: one that was inherited through
#: a fork is closed and opened again.
_opened: dict[str, tuple[int, Any]] = {}


def _environment(path: str) -> Any:
    lmdb, _ = libraries()
    real = os.path.realpath(path)
    pid, environment = _opened.get(real, (0, None))
    if pid == os.getpid():
        return environment
    if environment is not None:
        environment.close()
    if not Path(path, 'data.mdb').is_file():
        raise CacheError(
            f'no teacher cache at {path}; write it with tools/cache_teacher.py CONFIG --out {path}'
        )
    try:
        # Without locks: nobody writes into a finished cache, and the folder may be read-only.
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise CacheError(f'{path} is not a teacher cache, or is damaged: {error}') from error
    _opened[real] = os.getpid(), environment
    return environment


def close(path: str) -> None:
    """Closes a store that this process has open for reading."""
    pid, environment = _opened.pop(os.path.realpath(path), (0, None))
    if pid == os.getpid():
        environment.close()


class TeacherCache:
    """Reads a cache; opens it on the first look, in each process anew.

    Args:
        path (str): The folder.

    Raises:
        CacheError: On the first look, if there is none, or it is damaged or not finished.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self._meta: dict[str, Any] | None = None

    def _get(self, key: bytes) -> bytes | None:
        with _environment(self.path).begin() as transaction:
            return transaction.get(key)

    @property
    def meta(self) -> dict[str, Any]:
        """What the cache says of itself; its fingerprint and more."""
        if self._meta is None:
            data = self._get(META)
            if data is None:
                raise CacheError(f'{self.path} is a store, but not a teacher cache')
            meta = _read_meta(data, self.path)
            if self._get(FINISHED) is None:
                raise CacheError(
                    f'{self.path} is not finished; run tools/cache_teacher.py again as before, '
                    'which goes on where it stopped'
                )
            self._meta = meta
        return self._meta

    def read(self, image: str, tap: str) -> Record:
        """A record.

        Args:
            image (str): Name of the image; see :func:`image_name`.
            tap (str): One of ``meta['taps']``, or what :func:`mirrored` makes of it.

        Raises:
            CacheError: If there is none, or it is damaged.
        """
        key = record_key(image, tap)
        with _environment(self.path).begin(buffers=True) as transaction:
            data = transaction.get(key)
            if data is None:
                raise CacheError(
                    f'{self.path} holds no {tap!r} of {image}; {_MISSING} '
                    f'(it has: {", ".join(self.meta["taps"])})'
                )
            try:
                return unpack(data, key)
            except CacheError as error:
                raise CacheError(
                    f'{self.path}: the record of {image} ({tap}) is damaged: {error}. Write the '
                    'cache anew: delete the folder and run tools/cache_teacher.py again'
                ) from error

    def missing(self, images: Iterable[str]) -> list[str]:
        """The images of which something is not in the cache."""
        names = record_names(self.meta)
        with _environment(self.path).begin(buffers=True) as transaction:
            return [
                image
                for image in images
                if any(transaction.get(record_key(image, name)) is None for name in names)
            ]

    def keys(self) -> Iterator[tuple[str, str]]:
        """Image and tap of each record."""
        self.meta  # noqa: B018 - checks that it is a cache
        with _environment(self.path).begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                if SEPARATOR.encode() in key:
                    image, _, tap = key.decode().partition(SEPARATOR)
                    yield image, tap


_MISSING = 'run tools/cache_teacher.py again, which adds what is missing'


class CacheWriter:
    """Writes a cache; what was written stays whatever happens next.

    Args:
        path (str): The folder; made where there is none.
        meta (Mapping): What the cache says of itself.
        size (int): About how many bytes it is going to have. Defaults to 64 MiB.

    Raises:
        CacheError: If something else is there, or a cache of another fingerprint.
    """

    def __init__(self, path: str, meta: Mapping[str, Any], size: int = 2**26) -> None:
        self.path = str(path)
        self._lmdb, _ = libraries()
        folder = Path(path)
        if (
            folder.exists()
            and not Path(path, 'data.mdb').is_file()
            and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise CacheError(f'{path} exists and is not a teacher cache; choose another --out')
        close(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._environment = self._lmdb.open(self.path, map_size=max(2 * size, 2**26))
        except self._lmdb.Error as error:
            raise CacheError(f'{path} is not a teacher cache, or is damaged: {error}') from error
        try:
            self._begin(meta)
        except BaseException:
            self.close()
            raise

    def _begin(self, meta: Mapping[str, Any]) -> None:
        with self._environment.begin() as transaction:
            there, entries = transaction.get(META), transaction.stat()['entries']
        if there is None:
            if entries:
                raise CacheError(f'{self.path} is a store, but not a teacher cache')
            self._put({META: _write_meta(meta)})
            return
        different = differences(_read_meta(there, self.path), meta)
        if different:
            raise CacheError(
                f'{self.path} is a cache of something else, and is not overwritten: '
                f'{"; ".join(different)}. Choose another --out, or delete the folder'
            )

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store."""
        self._environment.close()

    def missing(self, images: Iterable[str], names: Sequence[str]) -> list[str]:
        """The images of which a record of these names is not there yet."""
        with self._environment.begin(buffers=True) as transaction:
            return [
                image
                for image in images
                if any(transaction.get(record_key(image, name)) is None for name in names)
            ]

    def write(self, image: str, records: Mapping[str, bytes]) -> None:
        """Stores the packed records of an image by tap, all or none of them."""
        self._put({record_key(image, tap): data for tap, data in records.items()})

    def finish(self) -> None:
        """Marks the cache as one that can be read."""
        self._put({FINISHED: b'1'})

    def reopen(self) -> None:
        """Marks it as one that is being written."""
        with self._environment.begin(write=True) as transaction:
            transaction.delete(FINISHED)

    def _put(self, items: Mapping[bytes, bytes]) -> None:
        try:
            with self._environment.begin(write=True) as transaction:
                for key, data in items.items():
                    transaction.put(key, data)
        except self._lmdb.MapFullError:
            self._environment.set_mapsize(2 * self._environment.info()['map_size'])
            self._put(items)
        except self._lmdb.Error as error:
            raise CacheError(
                f'{self.path} could not be written: {error}. What was stored stays; make room and '
                'run the same command again'
            ) from error


def _write_meta(meta: Mapping[str, Any]) -> bytes:
    body = json.dumps(dict(meta, format=FORMAT), sort_keys=True).encode()
    return _digest(META, body) + body


def _read_meta(data: bytes, path: str) -> dict[str, Any]:
    if _digest(META, data[_DIGEST:]) != data[:_DIGEST]:
        raise CacheError(f'{path} is damaged: the checksum of its description does not fit')
    meta = json.loads(data[_DIGEST:])
    if meta['format'] != FORMAT:
        raise CacheError(f'{path} was written by another version of this package; write it anew')
    return meta


def check_stored(cache: TeacherCache, names: Sequence[str], owner: str) -> None:
    """Raises a ValueError if a cache has not all the maps and explanations of these names."""
    there = cache.meta['taps']
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ValueError(
            f'{owner}: {cache.path} holds no maps of {", ".join(lacking)}; it has: '
            f'{", ".join(there)}. Write a cache with this config: tools/cache_teacher.py'
        )


# Sizes --------------------------------------------------------------------------------------------


def stored_size(records: Mapping[str, bytes]) -> int:
    """About how many bytes the packed records of an image take in the store."""
    return sum(-(-(len(data) + 16) // _PAGE) * _PAGE + 64 for data in records.values())


def check_space(path: str, needed: int, images: int) -> str:
    """Says how much is going to be written.

    Args:
        path (str): Where.
        needed (int): Bytes.
        images (int): Number of images that they are for.

    Raises:
        CacheError: If the disk has not enough.
    """
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f'about {human_size(needed)} for {images} images; free disk space {human_size(free)}'
    if needed > free:
        raise CacheError(
            f'{path}: not enough room: {text}. Take --dtype uint8, fewer taps, --top-k for logits, '
            'a smaller --scale, or another disk'
        )
    return text


def human_size(count: float) -> str:
    """A number of bytes as people write it.

    Examples:
        >>> human_size(12_300_000_000)
        '12.3 GB'
    """
    power = min(int(len(str(int(count))) - 1) // 3, 3)
    return f'{count / 1000**power:.{1 if power else 0}f} {("bytes", "kB", "MB", "GB")[power]}'
