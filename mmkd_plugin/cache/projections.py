"""Projections: fewer channels for maps that are stored, at random or learnt from these maps."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

import numpy as np

from mmkd_plugin.cache.records import DIGEST, CacheError, digest

#: Key of the learnt matrices in a store.
KEY = b'projections'

#: How channels are projected.
KINDS = ('random', 'learnt')


@cache
def projection(channels: int, kept: int) -> np.ndarray:
    """Returns a random projection of channels, the same on every machine.

    Its rows are orthogonal. It keeps the lengths of vectors, and the angles and distances between
    them, in the mean over random ones; the error falls with the root of ``kept``.

    Args:
        channels (int): Channels before.
        kept (int): Channels after, fewer.

    Returns:
        np.ndarray: ``(kept, channels)``, float32.

    Examples:
        >>> projection(8, 2).shape
        (2, 8)
    """
    draw = np.random.Generator(np.random.PCG64([channels, kept])).standard_normal((channels, kept))
    rows, signs = np.linalg.qr(draw)
    rows = rows * np.sign(np.diag(signs))  # LAPACKs choose the signs in their own ways
    return (rows.T * np.sqrt(channels / kept)).astype(np.float32)


class Principal:
    """Learns the projection that keeps most of the spread of maps: their principal components.

    Its rows are orthogonal and of one length, with which the distances between positions stay the
    same in the mean of their squares. Of all such projections, what is left out has the smallest
    spread.

    Args:
        channels (int): Channels of the maps.

    Examples:
        >>> import numpy as np
        >>> learnt = Principal(2)
        >>> learnt.add(np.array([[[1.0, -1.0, 3.0]], [[1.0, -1.0, 3.0]]]))
        >>> [round(float(value), 3) for value in learnt.matrix(1)[0]]
        [0.707, 0.707]
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = np.zeros(channels)
        self.products = np.zeros((channels, channels))

    def add(self, maps: np.ndarray) -> None:
        """Adds the positions of maps ``(C, H, W)``."""
        flat = maps.reshape(len(maps), -1).astype(np.float64)
        self.count += flat.shape[1]
        self.sums += flat.sum(1)
        self.products += flat @ flat.T

    def matrix(self, kept: int) -> np.ndarray:
        """The projection to so many channels, ``(kept, C)`` in float32."""
        mean = self.sums / self.count
        spread = self.products / self.count - np.outer(mean, mean)
        sizes, columns = np.linalg.eigh(spread)
        rows = columns.T[::-1][:kept]
        largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
        lost = sizes.sum() / max(sizes[::-1][:kept].sum(), np.finfo(float).tiny)
        return (rows * np.sign(largest) * np.sqrt(lost)).astype(np.float32)


def project(maps: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Projects maps ``(C, H, W)`` to fewer channels; without a matrix they stay as they are."""
    return maps if matrix is None else np.tensordot(matrix, maps, 1)


def to_bytes(matrices: Iterable[np.ndarray]) -> bytes:
    """Writes learnt matrices for the store, with a checksum."""
    body = b''.join(
        struct.pack('<II', *matrix.shape) + matrix.astype('<f4').tobytes() for matrix in matrices
    )
    return digest(KEY, body) + body


def from_bytes(data: bytes) -> list[np.ndarray]:
    """Reads the result of :func:`to_bytes`.

    Raises:
        CacheError: If it is damaged.
    """
    found, body = data[:DIGEST], data[DIGEST:]
    if digest(KEY, body) != found:
        raise CacheError('the checksum of its learnt projections does not fit')
    matrices: list[np.ndarray] = []
    while body:
        shape = struct.unpack_from('<II', body)
        size = 8 + 4 * shape[0] * shape[1]
        matrices.append(np.frombuffer(body[8:size], '<f4').reshape(shape))
        body = body[size:]
    return matrices
