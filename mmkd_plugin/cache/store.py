"""Store: a teacher's maps on disk, one record for each image and tap in a key-value store."""

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

#: Separates the names of image and tap in a key. Paths cannot contain it.
SEPARATOR = '\0'
META = b'meta'
FINISHED = b'finished'

_DIGEST = 16
LARGEST = 2**30
"""Bytes of a record at most: a small file can say that it takes any amount of memory."""

#: What a record raises whose checksum fits and that :func:`pack` did not write.
_MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error)
_PAGE = 4096


class CacheError(ValueError):
    """A cache cannot be read or written; the message names the reason and the remedy."""


def libraries() -> tuple[Any, Any]:
    """Imports the store and the compressor, which only caches need.

    Returns:
        tuple[Any, Any]: The modules ``lmdb`` and ``zstandard``.

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
    """Rounds maps to half precision after a multiplication with a power of two.

    The power of two makes the largest value fit the range of half precision. So no value overflows,
    and values far below 1, such as gradients, keep their digits. Values in the normal range of half
    precision are rounded as without the multiplication, bit for bit.

    Args:
        maps (np.ndarray): ``(C, H, W)``, float32.

    Returns:
        tuple[np.ndarray, int]: ``(C, H, W)`` in float16, and the n of the factor 2ⁿ.
    """
    peak = float(np.abs(maps).max(initial=0))
    shift = 15 - int(np.frexp(peak)[1]) if peak else 0
    return np.ldexp(maps, shift).astype(np.float16), shift


def to_uint8(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Rounds each channel to 256 levels between its smallest and its largest value.

    Args:
        maps (np.ndarray): ``(C, H, W)``, float32.

    Returns:
        tuple[np.ndarray, np.ndarray, int]: The levels ``(C, H, W)`` in uint8; the smallest value
        and the step of each channel, ``(2, C)`` in float16; and the n of the factor 2ⁿ on both.
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
    """Keeps the k largest logits of each position, and one logit for all other classes.

    The other classes share their probability evenly. So a softmax over the result of
    :func:`fill_top` keeps the probabilities of the k classes.

    Args:
        logits (np.ndarray): ``(C, H, W)``.
        k (int): Number of logits to keep, smaller than C.

    Returns:
        tuple[np.ndarray, np.ndarray]: The logits in falling order and that of the others,
        ``(k + 1, H, W)``; and the k classes, ``(k, H, W)``.
    """
    order = np.argsort(-logits, axis=0, kind='stable')
    kept = np.take_along_axis(logits, order, 0)
    others = kept[k:].astype(np.float64)
    top = others.max(0)
    mean = np.log(np.exp(others - top).mean(0)) + top
    classes = order[:k].astype(np.uint8 if len(logits) <= 256 else np.uint16)
    return np.concatenate([kept[:k], mean[None].astype(np.float32)]), classes


def fill_top(kept: np.ndarray, classes: np.ndarray, channels: int) -> np.ndarray:
    """Restores logits ``(C, H, W)`` from the results of :func:`keep_top`."""
    logits = np.repeat(kept[-1:], channels, axis=0)
    np.put_along_axis(logits, classes.astype(np.int64), kept[:-1], 0)
    return logits


# Records ------------------------------------------------------------------------------------------


@dataclass
class Record:
    """The maps of one image at one tap.

    Args:
        maps (list[np.ndarray]): Maps ``(C, H, W)``, float32.
        loaded (tuple[int, int]): Height and width of the image as loaded, pixels.
        seen (tuple[int, int]): Height and width of the image that the teacher saw, before padding,
            pixels.
    """

    maps: list[np.ndarray]
    loaded: tuple[int, int]
    seen: tuple[int, int]


def pack(record: Record, key: bytes, dtype: str = 'float16', top_k: int | None = None) -> bytes:
    """Writes a record as bytes: a checksum, then a compressed header and arrays.

    Args:
        record (Record): The record.
        key (bytes): Key of the record in the store. The checksum covers it too.
        dtype (str): ``'float16'`` or ``'uint8'``. Defaults to ``'float16'``.
        top_k (int, optional): Number of channels to keep; the maps are logits then. Defaults to
            None: all channels.

    Returns:
        bytes: The record.
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
    """Restores a record from the result of :func:`pack`.

    Args:
        data (bytes): The packed record.
        key (bytes): Key of the record in the store.

    Returns:
        Record: The record.

    Raises:
        CacheError: If the checksum does not fit, or it is none of :func:`pack`.
    """
    digest, body = bytes(data[:_DIGEST]), data[_DIGEST:]
    if _digest(key, body) != digest:
        raise CacheError('its checksum does not fit')
    zstd = libraries()[1]
    try:
        size = zstd.frame_content_size(body)
        if not 0 <= size <= LARGEST:
            raise CacheError(f'it says that it has {size} bytes, {LARGEST} at most are read')
        return _parsed(zstd.ZstdDecompressor().decompress(body))
    except CacheError:
        raise
    except _MALFORMED as error:
        raise CacheError(f'it cannot be read ({type(error).__name__}: {error})') from error
    except zstd.ZstdError as error:
        raise CacheError(f'it cannot be read ({error})') from error


def _parsed(body: bytes) -> Record:
    """The header and the arrays of a record."""
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
        if min(channels, *size) < 1:
            raise ValueError(f'maps of the shape {note["shape"]}')
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
    if start != len(body):
        raise ValueError(f'{len(body)} bytes, and its maps take {start}')
    return Record(maps, tuple(header['loaded']), tuple(header['seen']))


def _digest(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, key=hashlib.sha256(key).digest()).digest()


def record_key(image: str, tap: str) -> bytes:
    """Returns the key of a record. A long path is hashed: the store takes keys of 511 bytes."""
    name = image.encode()
    if len(name) > 300:
        name = b'sha256:' + hashlib.sha256(name).hexdigest().encode()
    return name + SEPARATOR.encode() + tap.encode()


def mirrored(tap: str) -> str:
    """Returns the name of the records with the maps of mirrored images."""
    return f'{tap} mirrored'


def record_names(meta: Mapping[str, Any]) -> list[str]:
    """Returns the names of an image's records in a cache with this metadata."""
    taps = list(meta['taps'])
    return taps + [mirrored(tap) for tap in taps] if meta.get('mirrored') else taps


#: Metadata that have to be equal for a cache to be continued, and their names in messages.
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
    """Lists the differences between the fingerprints of two caches.

    Args:
        there (Mapping[str, Any]): Metadata of the cache on disk.
        here (Mapping[str, Any]): Metadata of the cache that is wanted.

    Returns:
        list[str]: A text for each difference.

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

#: Open stores by path, each with the process that opened it. After a fork the child closes the
#: inherited store and opens its own.
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
        # no locks: a finished cache has no writer, and its folder may be read-only
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise CacheError(f'{path} is not a teacher cache, or is damaged: {error}') from error
    _check_size(environment, path)
    _opened[real] = os.getpid(), environment
    return environment


def _check_size(environment: Any, path: str) -> None:
    """Closes and refuses a store that was cut: to read beyond its end kills the process."""
    file = Path(path, 'data.mdb')
    expected = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    size = file.stat().st_size
    if size < expected:
        environment.close()
        raise CacheError(
            f'{file} was cut: it has {size} of {expected} bytes; copy it again, or delete the '
            'folder and run tools/cache_teacher.py again'
        )


def close(path: str) -> None:
    """Closes a store that this process has open for reading."""
    pid, environment = _opened.pop(os.path.realpath(path), (0, None))
    if pid == os.getpid():
        environment.close()


class TeacherCache:
    """Reads the cache of a teacher's maps. Each process opens it when it first reads.

    Args:
        path (str): Folder of the cache.

    Raises:
        CacheError: When it is first read, if the cache does not exist, is damaged or is not
            finished.

    Examples:
        >>> from mmkd_plugin import TeacherCache
        >>> cache = TeacherCache('work_dirs/cache')
        >>> cache.path
        'work_dirs/cache'
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self._meta: dict[str, Any] | None = None

    def _get(self, key: bytes) -> bytes | None:
        with _environment(self.path).begin() as transaction:
            return transaction.get(key)

    @property
    def meta(self) -> dict[str, Any]:
        """Metadata of the cache: its fingerprint, and descriptions of the maps."""
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
        """Reads a record.

        Args:
            image (str): Name of the image, as :func:`image_name` returns it.
            tap (str): One of ``meta['taps']``, or its name from :func:`mirrored`.

        Returns:
            Record: The record.

        Raises:
            CacheError: If the record does not exist or is damaged.
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
                record = unpack(data, key)
                self._check_maps(record, tap)
                return record
            except CacheError as error:
                raise CacheError(
                    f'{self.path}: the record of {image} ({tap}) is damaged: {error}. Write the '
                    'cache anew: delete the folder and run tools/cache_teacher.py again'
                ) from error

    def _check_maps(self, record: Record, tap: str) -> None:
        """Compares the maps of a record with the description of the tap."""
        about = self.meta['taps'].get(tap.removesuffix(mirrored('')), {}).get('maps')
        there = [maps.shape[0] for maps in record.maps]
        if about is not None and there != [channels for channels, *_ in about]:
            raise CacheError(f'its maps have {there} channels, and those of the tap {about}')

    def missing(self, images: Iterable[str]) -> list[str]:
        """Returns the images with a record that is not in the cache.

        Args:
            images (Iterable[str]): Names of images.

        Returns:
            list[str]: Some of these names.
        """
        names = record_names(self.meta)
        return _without_records(_environment(self.path), images, names)

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yields the names of image and tap of each record."""
        self.meta  # noqa: B018 - checks that it is a cache
        with _environment(self.path).begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                if SEPARATOR.encode() in key:
                    image, _, tap = key.decode().partition(SEPARATOR)
                    yield image, tap


_MISSING = 'run tools/cache_teacher.py again, which adds what is missing'


def _without_records(environment: Any, images: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the images that lack a record of one of these names."""
    with environment.begin(buffers=True) as transaction:
        return [
            image
            for image in images
            if any(transaction.get(record_key(image, name)) is None for name in names)
        ]


class CacheWriter:
    """Writes a cache, or continues one. Records are kept if writing stops.

    Args:
        path (str): Folder of the cache. It is created if it does not exist.
        meta (Mapping[str, Any]): Metadata of the cache.
        size (int): Estimated size of the cache, bytes. Defaults to 64 MiB.

    Raises:
        CacheError: If the folder has other files, or a cache with another fingerprint.
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
        _check_size(self._environment, self.path)
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
        """Returns the images that lack a record of one of these names.

        Args:
            images (Iterable[str]): Names of images.
            names (Sequence[str]): Names of records.

        Returns:
            list[str]: Some of the images.
        """
        return _without_records(self._environment, images, names)

    def write(self, image: str, records: Mapping[str, bytes]) -> None:
        """Stores the records of an image, all or none of them.

        Args:
            image (str): Name of the image.
            records (Mapping[str, bytes]): Packed records by the name of the tap.

        Raises:
            CacheError: If the disk is full, or writing fails.
        """
        self._put({record_key(image, tap): data for tap, data in records.items()})

    def finish(self) -> None:
        """Marks the cache as finished, so that it can be read."""
        self._put({FINISHED: b'1'})

    def reopen(self) -> None:
        """Marks the cache as not finished, so that it cannot be read."""
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
    try:
        meta = json.loads(data[_DIGEST:])
    except ValueError as error:
        raise CacheError(f'{path} is damaged: its description is no JSON ({error})') from error
    if not isinstance(meta, dict) or not isinstance(meta.get('taps'), dict):
        raise CacheError(f'{path} is damaged: its description names no maps')
    if meta.get('format') != FORMAT:
        raise CacheError(f'{path} was written by another version of this package; write it anew')
    return meta


def check_stored(cache: TeacherCache, names: Sequence[str], owner: str) -> None:
    """Checks that a cache has all maps and explanations with these names.

    Args:
        cache (TeacherCache): The cache.
        names (Sequence[str]): Names of records.
        owner (str): Name of the teacher in messages.

    Raises:
        ValueError: If one of them is missing.
    """
    there = cache.meta['taps']
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ValueError(
            f'{owner}: {cache.path} holds no maps of {", ".join(lacking)}; it has: '
            f'{", ".join(there)}. Write a cache with this config: tools/cache_teacher.py'
        )


# Sizes --------------------------------------------------------------------------------------------


def stored_size(records: Mapping[str, bytes]) -> int:
    """Estimates the bytes that the packed records of an image take in the store."""
    return sum(-(-(len(data) + 16) // _PAGE) * _PAGE + 64 for data in records.values())


def check_space(path: str, needed: int, images: int) -> str:
    """Checks that the disk has room for a cache.

    Args:
        path (str): Folder of the cache.
        needed (int): Size of the cache, bytes.
        images (int): Number of images.

    Returns:
        str: A line about the size and the free space.

    Raises:
        CacheError: If the disk does not have enough free space.
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
    """Formats a number of bytes.

    Examples:
        >>> human_size(12_300_000_000)
        '12.3 GB'
    """
    power = min(int(len(str(int(count))) - 1) // 3, 3)
    return f'{count / 1000**power:.{1 if power else 0}f} {("bytes", "kB", "MB", "GB")[power]}'
