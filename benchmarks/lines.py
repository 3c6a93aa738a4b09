"""Files with one record in each line, as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from mmkd_plugin.annotations import check_arguments
from mmkd_plugin.cli import UsageError
from mmkd_plugin.words import first_line

T = TypeVar('T')


def read_lines(path: Path, kind: type[T], called: str) -> list[T]:
    """Reads all lines.

    Args:
        path (Path): The file; one that does not exist has no lines.
        kind (type): The data class of a record.
        called (str): What messages call a record.

    Raises:
        UsageError: If the file cannot be read, or a line is no record; with its number.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f'{path} cannot be read: {first_line(error)}') from None
    records, names = [], [field.name for field in fields(kind)]
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            content = {key: content[key] for key in names}
            given = {key: value for key, value in content.items() if value != ''}  # not known
            check_arguments(kind, given, called)
            records.append(kind(**content))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise UsageError(f'{path}, line {number} is no {called}: {error}') from None
    return records
