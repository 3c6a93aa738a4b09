"""docs/zoo.md: how many configs work, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo.records import Record
from mmkd_plugin.saving import write_text


def write(records: Sequence[Record], path: Path) -> None:
    write_text(path, 'todo\n')
