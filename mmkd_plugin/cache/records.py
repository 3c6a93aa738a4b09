"""Records: a teacher's maps of one image as bytes, with a checksum."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmkd_plugin.cache.cosines import (
    BLOCK,
    apart,
    count_blocks,
    from_cosines,
    to_cosines,
    together,
)
from mmkd_plugin.words import from_worker

DIGEST = 16
"""Bytes of a checksum."""

LARGEST = 2**30
"""Bytes of a record at most: a small file can say that it takes any amount of memory."""

#: Level of zstandard for `compact`: higher ones take longer and save nothing.
THOROUGH = 15

#: Steps between a probability of 0 and of 1, see :func:`to_roots`.
STEPS = 31

#: How class scores are stored by types that keep their probabilities alone.
OF_SCORES = dict(compact='roots', smallest='cosines')

#: What a record raises whose checksum fits and that :func:`pack` did not write.
_MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error)


class CacheError(ValueError):
    """A cache cannot be read or written; the message names the reason and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(from_worker(message, type(self).__name__))


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


def to_roots(scores: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
    """Rounds the roots of the probabilities of classes to :data:`STEPS`.

    Errors of the roots count alike in the divergence of probabilities, so equal steps of them lose
    least. Classes that no loss can see become 0, and zeros take almost no room.

    Args:
        scores (np.ndarray): ``(C, H, W)``.
        tau (float): The highest temperature at which losses compare the probabilities.

    Returns:
        tuple[np.ndarray, float]: The steps, ``(H, W, C)`` in uint8; and the mean probability of
        those that became 0.
    """
    shares = np.exp((scores - scores.max(0)) / tau)
    shares /= shares.sum(0)
    steps = np.rint(np.sqrt(shares) * STEPS).astype(np.uint8)
    lost = shares[steps == 0]
    mean = float(lost.mean(dtype=np.float64)) if lost.size else 0.0
    return np.ascontiguousarray(steps.transpose(1, 2, 0)), mean


def from_roots(steps: np.ndarray, lost: float, tau: float) -> np.ndarray:
    """Restores class scores ``(C, H, W)`` from the results of :func:`to_roots`."""
    table = (np.arange(256, dtype=np.float32) / STEPS) ** 2
    table[0] = max(lost, 1e-30)  # its logarithm is finite
    scores = (tau * np.log(table)).astype(np.float32)
    return scores.take(np.ascontiguousarray(steps.transpose(2, 0, 1)))


# Records ------------------------------------------------------------------------------------------


@dataclass
class Record:
    """The maps of one image at one tap.

    Args:
        maps (list[np.ndarray]): Maps ``(C, H, W)``, float32.
        loaded (tuple[int, int]): Height and width of the image as loaded, pixels.
        seen (tuple[int, int]): Height and width of the image that the teacher saw, before padding,
            pixels.
        picture (list[float]): A few numbers by which the image is known again. Defaults to none.
    """

    maps: list[np.ndarray]
    loaded: tuple[int, int]
    seen: tuple[int, int]
    picture: list[float] = field(default_factory=list)


def pack(
    record: Record,
    key: bytes,
    dtype: str = 'float16',
    top_k: int | None = None,
    tau: float | None = None,
) -> bytes:
    """Writes a record as bytes: a checksum, then a compressed header and arrays.

    Behind them are the parts of waves, each compressed by itself.

    Args:
        record (Record): The record.
        key (bytes): Key of the record in the store. The checksum covers it too.
        dtype (str): ``'float16'``, ``'uint8'``, ``'compact'`` or ``'smallest'``. Defaults to
            ``'float16'``.
        top_k (int, optional): Number of channels to keep; the maps are logits then. Defaults to
            None: all channels.
        tau (float, optional): Temperature of :func:`to_roots` or :func:`to_cosines`, for maps that
            are class scores. Defaults to None: ``'compact'`` and ``'smallest'`` are ``'uint8'``.

    Returns:
        bytes: The record.
    """
    header, arrays = dict(loaded=record.loaded, seen=record.seen, maps=[]), []
    behind: list[bytes] = []
    if record.picture:
        header['picture'] = record.picture
    level = 3
    if dtype in OF_SCORES:
        dtype, level = 'uint8' if tau is None else OF_SCORES[dtype], THOROUGH
    compress = libraries()[1].ZstdCompressor(level).compress
    for maps in record.maps:
        note: dict[str, Any] = dict(shape=maps.shape)
        if dtype in OF_SCORES.values():
            rounded = to_roots if dtype == 'roots' else to_cosines
            values, note['lost'] = rounded(maps, tau)
            if dtype == 'roots':
                arrays.append(values)
            else:
                parts = [compress(part.tobytes()) for part in apart(values)]
                note['parts'] = [len(part) for part in parts]
                behind += parts
            header['maps'].append(dict(note, tau=tau, dtype=dtype))
            continue
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
    body = b''.join([compress(body), *behind])
    return digest(key, body) + body


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
    found, body = bytes(data[:DIGEST]), data[DIGEST:]
    if digest(key, body) != found:
        raise CacheError('its checksum does not fit')
    zstd = libraries()[1]
    try:
        return _parsed(_inflated(body), body)
    except CacheError:
        raise
    except _MALFORMED as error:
        raise CacheError(f'it cannot be read ({type(error).__name__}: {error})') from error
    except zstd.ZstdError as error:
        raise CacheError(f'it cannot be read ({error})') from error


def _inflated(data: bytes) -> bytes:
    """The content of the first frame in bytes."""
    zstd = libraries()[1]
    size = zstd.frame_content_size(data)
    if not 0 <= size <= LARGEST:
        raise CacheError(f'it says that it has {size} bytes, {LARGEST} at most are read')
    return zstd.ZstdDecompressor().decompress(data)


def _parsed(body: bytes, whole: bytes) -> Record:
    """The header and the arrays of a record, and the parts of waves at the end of the whole."""
    start = 4 + struct.unpack_from('<I', body)[0]
    header = json.loads(body[4:start])

    def take(dtype: Any, *shape: int) -> np.ndarray:
        nonlocal start
        array = np.frombuffer(body, dtype, int(np.prod(shape)), start).reshape(shape)
        start += array.nbytes
        return array

    behind = len(whole) - sum(sum(note.get('parts', ())) for note in header['maps'])

    def take_part(size: int) -> np.ndarray:
        nonlocal behind
        part = whole[behind : behind + size]
        behind += size
        return np.frombuffer(_inflated(part), np.uint8)

    maps = []
    for note in header['maps']:
        channels, *size = note['shape']
        if min(channels, *size) < 1:
            raise ValueError(f'maps of the shape {note["shape"]}')
        if note['dtype'] == 'roots':
            maps.append(from_roots(take(np.uint8, *size, channels), note['lost'], note['tau']))
            continue
        if note['dtype'] == 'cosines':
            blocks = count_blocks(channels, size)
            if BLOCK * BLOCK * blocks > LARGEST:
                raise ValueError(f'maps of the shape {note["shape"]}')
            if 'parts' in note:
                waves = together(*map(take_part, note['parts']), blocks)
            else:  # written by an earlier version
                waves = take(np.uint8, BLOCK * BLOCK, blocks)
            maps.append(from_cosines(waves, note['lost'], note['tau'], channels, size))
            continue
        k = note.get('k')
        if k is not None:
            classes = take(np.uint8 if channels <= 256 else np.uint16, k, *size)
        count = channels if k is None else k + 1
        if note['dtype'] == 'uint8':
            values = take(np.uint8, count, *size).astype(np.float32)
            scale = take(np.float16, 2, count).astype(np.float32)[:, :, None, None]
            low, step = np.ldexp(scale, -note['shift'])  # exact, and fewer numbers than the map
            values *= step
            values += low
        else:
            values = take(np.float16, count, *size).astype(np.float32)
            np.ldexp(values, -note['shift'], out=values)
        maps.append(values if k is None else fill_top(values, classes, channels))
    if start != len(body):
        raise ValueError(f'{len(body)} bytes, and its maps take {start}')
    known_by = [float(number) for number in header.get('picture', ())]
    return Record(maps, tuple(header['loaded']), tuple(header['seen']), known_by)


def digest(key: bytes, body: bytes) -> bytes:
    """The checksum of something stored, which covers its key too."""
    return hashlib.blake2b(body, digest_size=DIGEST, key=hashlib.sha256(key).digest()).digest()


def human_size(count: float) -> str:
    """Formats a number of bytes.

    Examples:
        >>> human_size(12_300_000_000)
        '12.3 GB'
    """
    power = min(int(len(str(int(count))) - 1) // 3, 3)
    return f'{count / 1000**power:.{1 if power else 0}f} {("bytes", "kB", "MB", "GB")[power]}'
