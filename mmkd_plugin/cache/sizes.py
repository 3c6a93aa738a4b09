"""Sizes: the bytes that records take in the store, and whether the disk has room for them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mmkd_plugin.cache.records import CacheError, human_size

#: Bytes of a page of the store.
PAGE = 4096


def stored_size(records: Mapping[str, bytes]) -> int:
    """Estimates the bytes that the packed records of an image take in the store."""
    return sum(map(_stored_size, records.values()))


def _stored_size(data: bytes) -> int:
    if len(data) < PAGE // 2 - 128:  # several share a page, which is about half full
        return 2 * (len(data) + 32)
    return -(-(len(data) + 16) // PAGE) * PAGE + 64


def check_space(path: str, needed: int, images: int, what: str = 'images') -> str:
    """Checks that the disk has room for a cache.

    Args:
        path (str): Folder of the cache.
        needed (int): Size of the cache, bytes.
        images (int): Number of images.
        what (str): What they are called. Defaults to ``'images'``.

    Returns:
        str: A line about the size and the free space.

    Raises:
        CacheError: If the disk does not have enough free space.
    """
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f'about {human_size(needed)} for {images} {what}; free disk space {human_size(free)}'
    if needed > free:
        raise CacheError(
            f'{path}: not enough room: {text}. Take --dtype smallest, fewer taps, fewer --channels '
            'or --views, a smaller --scale, or another disk'
        )
    return text
