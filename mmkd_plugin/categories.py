"""The categories of a COCO file, read without the rest of it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEY = b'"categories"'
#: Bytes that are read at first; twice as many until the list ends.
PIECE = 1 << 16


def categories_of(file: str | Path) -> list[dict[str, Any]]:
    """The categories of an annotation file in COCO's format, in its order.

    A file of COCO itself has half a gigabyte, and this list stands at its end.

    Args:
        file (str | Path): The file.

    Returns:
        list[dict]: Each with ``id`` and ``name``; empty if the file has none.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON.
    """
    with Path(file).open('rb') as opened:
        if not Path(file).stat().st_size:
            return []
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(KEY)
            while at >= 0:
                found = _list_behind(content, at + len(KEY))
                if _are_categories(found):
                    return found
                at = content.rfind(KEY, 0, at)
    found = json.loads(Path(file).read_bytes())
    found = found.get('categories') if isinstance(found, dict) else None
    return found if _are_categories(found) else []


def _list_behind(content: mmap.mmap, start: int) -> Any:
    """The value behind a key, None if it is cut or something else."""
    size = PIECE
    while True:
        piece = content[start : start + size].decode(errors='ignore').lstrip()
        if not piece.startswith(':'):
            return None
        try:
            return json.JSONDecoder().raw_decode(piece[1:].lstrip())[0]
        except ValueError:
            if start + size >= len(content):
                return None
        size *= 2


def _are_categories(found: Any) -> bool:
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(one, dict) and {'id', 'name'} <= one.keys() for one in found)
    )


def in_order_of_file(names: Sequence[str], categories: Sequence[dict]) -> tuple[str, ...] | None:
    """Names of classes in the order of the categories; None if there are not just these.

    Args:
        names (Sequence[str]): The names; categories with others do not count.
        categories (Sequence[dict]): As :func:`categories_of` gives them.

    Examples:
        >>> categories = [dict(id=3, name='cat'), dict(id=1, name='dog'), dict(id=2, name='cow')]
        >>> in_order_of_file(('dog', 'cat'), categories)
        ('cat', 'dog')
    """
    found = tuple(one['name'] for one in categories if one['name'] in names)
    return found if sorted(found) == sorted(names) else None
