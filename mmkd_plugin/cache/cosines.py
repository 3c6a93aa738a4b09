"""Cosines: class scores as rounded waves of the roots of probabilities, as JPEG stores a picture.

Probabilities of neighbouring positions are alike, but at borders. Of a block of 4×4 positions most
of the 16 waves are 0 then, and zeros take almost no room.
"""

from __future__ import annotations

from functools import cache

import numpy as np

#: Positions along a block.
BLOCK = 4

#: Steps between a wave of 0 and of 1.
STEPS = 12

#: What is added before waves are cut to whole steps; below 0.5, the smallest waves become 0.
ROUNDING = 0.4


@cache
def waves() -> np.ndarray:
    """The 16 orthonormal waves of a block, ``(16, 16)``: a row for each."""
    place = np.arange(BLOCK)
    rows = np.cos(np.pi * (2 * place + 1) * place[:, None] / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    rows[0] /= np.sqrt(2)
    return np.kron(rows, rows).astype(np.float32)


def to_cosines(scores: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
    """Rounds the waves of the roots of probabilities.

    Args:
        scores (np.ndarray): Class scores ``(C, H, W)``.
        tau (float): The highest temperature at which losses compare the probabilities.

    Returns:
        tuple[np.ndarray, float]: The steps of each wave, ``(16, C · blocks)`` in uint8, those above
        0 with even and those below with odd numbers; and the mean probability where the waves add
        up to nothing.
    """
    shares = np.exp((scores - scores.max(0)) / tau)
    shares /= shares.sum(0)
    channels, *size = shares.shape
    more = [(0, -side % BLOCK) for side in size]
    roots = np.pad(np.sqrt(shares), [(0, 0), *more], mode='edge')
    rows, columns = (side // BLOCK for side in roots.shape[1:])
    blocks = roots.reshape(channels, rows, BLOCK, columns, BLOCK).transpose(0, 1, 3, 2, 4)
    found = blocks.reshape(-1, BLOCK * BLOCK) @ waves().T * STEPS
    steps = (np.sign(found) * np.floor(np.abs(found) + ROUNDING)).astype(np.int16)
    signed = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype(np.uint8)
    lost = shares[_roots(signed.T, channels, size) <= 0]
    mean = float(lost.mean(dtype=np.float64)) if lost.size else 0.0
    return np.ascontiguousarray(signed.T), mean


def from_cosines(
    signed: np.ndarray, lost: float, tau: float, channels: int, size: tuple[int, int]
) -> np.ndarray:
    """Restores class scores ``(C, H, W)`` from the results of :func:`to_cosines`."""
    roots = _roots(signed, channels, size)
    shares = np.where(roots > 0, roots * roots, np.float32(lost))
    return tau * np.log(np.maximum(shares, np.float32(1e-30)))


def apart(signed: np.ndarray) -> list[np.ndarray]:
    """Takes the results of :func:`to_cosines` apart, into parts that compress better each alone.

    Args:
        signed (np.ndarray): ``(16, n)`` in uint8.

    Returns:
        list[np.ndarray]: In uint8: the first wave of all blocks; how many zeros are in front of
        each other step, 255 of them as a byte of their own; and these steps.

    Examples:
        >>> import numpy as np
        >>> steps = np.zeros((16, 2), np.uint8)
        >>> steps[0], steps[3, 1] = 7, 2
        >>> [part.tolist() for part in apart(steps)]
        [[7, 7], [5], [2]]
    """
    others = signed[1:].ravel()
    at = np.flatnonzero(others)
    zeros = np.diff(at, prepend=-1) - 1
    whole = zeros // 255
    gaps = np.full(len(at) + int(whole.sum()), 255, np.uint8)
    gaps[np.cumsum(whole + 1) - 1] = zeros % 255
    return [signed[0], gaps, others[at]]


def together(first: np.ndarray, gaps: np.ndarray, steps: np.ndarray, blocks: int) -> np.ndarray:
    """Puts the results of :func:`apart` together again, ``(16, blocks)``.

    Raises:
        ValueError: If they do not fit together.

    Examples:
        >>> import numpy as np
        >>> parts = (np.array(part, np.uint8) for part in ([7, 7], [5], [2]))
        >>> int(together(*parts, 2)[3, 1])
        2
    """
    if len(first) != blocks:
        raise ValueError(f'{len(first)} blocks, and its maps have {blocks}')
    others = np.zeros((BLOCK * BLOCK - 1) * blocks, np.uint8)
    at = np.cumsum(gaps, dtype=np.int64)[gaps < 255] + np.arange(len(steps))
    if len(at) and at[-1] >= len(others):
        raise ValueError(f'a step at {at[-1]} of {len(others)}')
    others[at] = steps
    return np.concatenate([first, others]).reshape(BLOCK * BLOCK, -1)


def count_blocks(channels: int, size: tuple[int, int]) -> int:
    """The number of blocks of maps ``(C, H, W)``."""
    return channels * int(np.prod([-(-side // BLOCK) for side in size]))


def _roots(signed: np.ndarray, channels: int, size: tuple[int, int]) -> np.ndarray:
    """The roots ``(C, H, W)`` that rounded waves add up to."""
    steps = (signed >> 1).astype(np.int16)
    steps ^= -(signed & 1).astype(np.int16)
    rows, columns = (-(-side // BLOCK) for side in size)
    blocks = steps.T.astype(np.float32) @ (waves() / STEPS)
    blocks = blocks.reshape(channels, rows, columns, BLOCK, BLOCK).transpose(0, 1, 3, 2, 4)
    whole = blocks.reshape(channels, rows * BLOCK, columns * BLOCK)
    return np.ascontiguousarray(whole[:, : size[0], : size[1]])
