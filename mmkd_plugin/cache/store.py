"""Store: a teacher's maps on disk, one record for each image and tap in a key-value store."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from mmkd_plugin.beside import beside_a_config
from mmkd_plugin.cache.records import (
    DIGEST,
    LARGEST,
    OF_SCORES,
    CacheError,
    Record,
    digest,
    fill_top,
    human_size,
    keep_top,
    libraries,
    pack,
    to_float16,
    to_uint8,
    unpack,
)
from mmkd_plugin.cache.sizes import PAGE
from mmkd_plugin.saving import locked
from mmkd_plugin.words import path_text

__all__ = [
    'DTYPES',
    'FINISHED',
    'FORMAT',
    'LARGEST',
    'META',
    'SEPARATOR',
    'CacheError',
    'CacheWriter',
    'Record',
    'TeacherCache',
    'check_stored',
    'close',
    'differences',
    'drawn_differences',
    'fill_top',
    'human_size',
    'keep_top',
    'libraries',
    'mirrored',
    'of_view',
    'pack',
    'record_key',
    'record_names',
    'to_float16',
    'to_uint8',
    'unpack',
]

FORMAT = 1
DTYPES = ('float16', 'uint8', *OF_SCORES)

#: Separates the names of image and tap in a key. Paths cannot contain it.
SEPARATOR = '\0'
META = b'meta'
FINISHED = b'finished'

#: File that a writer locks, and those that may be there without a store.
LOCK = '.lock'
LOCKS = {LOCK, 'lock.mdb'}


def record_key(image: str, tap: str) -> bytes:
    """Returns the key of a record. A long path is hashed: the store takes keys of 511 bytes."""
    name = image.encode()
    if len(name) > 300:
        name = b'sha256:' + hashlib.sha256(name).hexdigest().encode()
    return name + SEPARATOR.encode() + tap.encode()


def mirrored(tap: str) -> str:
    """Returns the name of the records with the maps of mirrored images."""
    return f'{tap} mirrored'


def of_view(tap: str, number: int) -> str:
    """Returns the name of the records with the maps of a view of images."""
    return f'{tap} view {number}'


def _tap_of(name: str) -> str:
    """The tap of the name of a record."""
    return re.sub(r' (mirrored|view \d+)$', '', name)


def record_names(meta: Mapping[str, Any]) -> list[str]:
    """Returns the names of an image's records in a cache with this metadata."""
    taps = list(meta['taps'])
    if 'views' in meta:
        return [of_view(tap, number) for number in range(meta['views']) for tap in taps]
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
    channels='channels',
    projection='projection of channels',
    tau='temperature',
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
    kinds = ['views' if 'views' in meta else 'whole images' for meta in (there, here)]
    if kinds[0] != kinds[1]:
        return [f'it holds maps of {kinds[0]}, not of {kinds[1]}']
    found = []
    for key, words in FINGERPRINT.items():
        old, new = (_shown(key, meta.get(key)) for meta in (there, here))
        if old != new:
            found.append(f'{words} there: {old}, here: {new}')
    drawn = [meta.get('drawn') or {} for meta in (there, here)]
    if drawn[0].get('images') != drawn[1].get('images'):
        found.append('the training images are others, or in another order')
    return [*found, *drawn_differences(*drawn)]


def drawn_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lists the first difference between what two caches of views were drawn from.

    Args:
        there (Mapping[str, Any]): What :func:`~mmkd_plugin.cache.drawn.drawn_from` has returned for
            the cache on disk.
        here (Mapping[str, Any]): The same of the cache that is wanted.

    Returns:
        list[str]: A text, or nothing.

    Examples:
        >>> drawn_differences(dict(dataset=dict(a=[1, 2])), dict(dataset=dict(a=[1, 3])))
        ['train_dataloader.dataset.a there: [1, 2], here: [1, 3]']
    """
    places = dict(
        dataset='train_dataloader.dataset',
        preprocessor='data_preprocessor',
        unlabelled='unlabelled.dataset',
    )
    texts = (
        text
        for key, place in places.items()
        for text in _differences(there.get(key), here.get(key), place)
    )
    return list(islice(texts, 1))


def _differences(there: Any, here: Any, place: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        if there.get('type') != here.get('type'):
            yield f'{place}.type there: {there.get("type")}, here: {here.get("type")}'
        for key in dict.fromkeys((*there, *here)):
            yield from _differences(there.get(key), here.get(key), f'{place}.{key}')
    elif isinstance(there, list) and isinstance(here, list) and not _plain([*there, *here]):
        if len(there) != len(here):
            kinds = [', '.join(_kind(one) for one in steps) for steps in (there, here)]
            yield f'{place} there: {kinds[0]}; here: {kinds[1]}'
        for i, pair in enumerate(zip(there, here)):
            yield from _differences(*pair, f'{place}[{i}]')
    elif there != here:
        yield f'{place} there: {there}, here: {here}'


def _plain(values: list) -> bool:
    return not any(isinstance(one, (dict, list)) for one in values)


def _kind(step: Any) -> str:
    return str(step.get('type')) if isinstance(step, dict) else str(step)


def _shown(key: str, value: Any) -> str:
    if key in ('weights', 'config'):
        return str(value)[:12]
    return ', '.join(sorted(value or ())) if key == 'taps' else str(value)


# The store ----------------------------------------------------------------------------------------

#: Open stores by path, each with the process that opened it. After a fork the child closes the
#: inherited store and opens its own.
_opened: dict[str, tuple[int, Any]] = {}


def _environment(path: str, real: str, here: str) -> Any:
    pid, environment = _opened.get(real, (0, None))
    if pid == os.getpid():
        return environment
    lmdb, _ = libraries()
    if environment is not None:
        environment.close()
    if not Path(path, 'data.mdb').is_file():
        place, text = f'{here}: ' if here else '', path_text(path)
        hint = f'; write it with tools/cache_teacher.py CONFIG --out {text}'
        found = '' if Path(path).is_dir() else beside_a_config(path)
        raise CacheError(f'{place}no teacher cache at {text}{found or hint}')
    try:
        # no locks: a finished cache has no writer, and its folder may be read-only
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise CacheError(f'{path} is not a teacher cache, or is damaged: {error}') from error
    _check_size(environment, path)
    _opened[real] = os.getpid(), environment
    return environment


def _remove_beginning(folder: Path) -> None:
    """Removes what is there of a store whose writer was killed before it held anything."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    data = folder / 'data.mdb'
    empty = not data.exists() or data.stat().st_size in (0, PAGE)  # it begins with two pages
    if names and names <= {'data.mdb', 'lock.mdb'} and empty:
        for name in names:
            (folder / name).unlink()


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
        here (str): What the message calls the place of the path in a config if there is no cache.
            Defaults to ``''``.

    Raises:
        CacheError: When it is first read, if the cache does not exist, is damaged or is not
            finished.

    Examples:
        >>> from mmkd_plugin import TeacherCache
        >>> cache = TeacherCache('work_dirs/cache')
        >>> cache.path
        'work_dirs/cache'
    """

    def __init__(self, path: str, here: str = '') -> None:
        self.path = str(path)
        self._here = here
        self._real = os.path.realpath(self.path)  # once: it takes as long as reading a small record
        self._meta: dict[str, Any] | None = None

    def _store(self) -> Any:
        return _environment(self.path, self._real, self._here)

    def _get(self, key: bytes) -> bytes | None:
        with self._store().begin() as transaction:
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
        with self._store().begin(buffers=True) as transaction:
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
        about = self.meta['taps'].get(_tap_of(tap), {}).get('maps')
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
        return _without_records(self._store(), images, names)

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yields the names of image and tap of each record."""
        self.meta  # noqa: B018 - checks that it is a cache
        with self._store().begin() as transaction:
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
        CacheError: If the folder has other files, a cache with another fingerprint, or a cache that
            another process writes.
    """

    def __init__(self, path: str, meta: Mapping[str, Any], size: int = 2**26) -> None:
        self.path = str(path)
        self.views = meta.get('views')
        self._lmdb, _ = libraries()
        folder = Path(path)
        if (
            folder.exists()
            and not Path(path, 'data.mdb').is_file()
            and (not folder.is_dir() or {file.name for file in folder.iterdir()} - LOCKS)
        ):
            raise CacheError(f'{path} exists and is not a teacher cache; choose another --out')
        close(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        owner = self._held.enter_context(locked(folder / LOCK))
        if owner is not None:
            self._held.close()
            raise CacheError(
                f'{path}: {owner} writes it already; wait until it has ended, or choose another '
                '--out'
            )
        _remove_beginning(folder)
        if (folder / 'lock.mdb').is_symlink():  # LMDB would write through it
            (folder / 'lock.mdb').unlink()
        try:
            self._environment = self._lmdb.open(self.path, map_size=max(2 * size, 2**26))
        except self._lmdb.Error as error:
            self._held.close()
            raise CacheError(f'{path} is not a teacher cache, or is damaged: {error}') from error
        try:
            _check_size(self._environment, self.path)
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
            begun = meta if self.views is None else {**meta, 'views': 0}
            self._put({META: _write_meta(begun)})
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
        self._held.close()

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
        """Marks the cache as finished, so that it can be read.

        A cache of views has as many of them from now on as it was opened for, or as it had.
        """
        if self.views is None:
            self._put({FINISHED: b'1'})
        else:
            with self._environment.begin() as transaction:
                there = _read_meta(transaction.get(META), self.path)
            views = max(self.views, there['views'])
            self._put({META: _write_meta({**there, 'views': views}), FINISHED: b'1'})

    def noted(self, key: bytes) -> bytes | None:
        """Returns what :meth:`describe` has written beside the records, or None."""
        with self._environment.begin() as transaction:
            return transaction.get(key)

    def describe(self, meta: Mapping[str, Any], notes: Mapping[bytes, bytes]) -> None:
        """Replaces the description of a cache that holds no records yet.

        Args:
            meta (Mapping[str, Any]): The metadata.
            notes (Mapping[bytes, bytes]): What to write beside the records, by its key.
        """
        begun = meta if self.views is None else {**meta, 'views': 0}
        self._put({META: _write_meta(begun), **notes})

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
    return digest(META, body) + body


def _read_meta(data: bytes, path: str) -> dict[str, Any]:
    if digest(META, data[DIGEST:]) != data[:DIGEST]:
        raise CacheError(f'{path} is damaged: the checksum of its description does not fit')
    try:
        meta = json.loads(data[DIGEST:])
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
