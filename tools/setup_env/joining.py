"""Fewer and larger C++ files: most of the time of mmcv's ops goes into torch's headers."""

from __future__ import annotations

import re
from pathlib import Path

#: Folders of an mmcv source with a small file for each op, and the files there that define the same
#: names as others and stay alone.
FOLDERS = {
    'mmcv/ops/csrc/pytorch': (),
    'mmcv/ops/csrc/pytorch/cpu': (
        'roi_align.cpp',
        'roi_align_rotated.cpp',
        'rotated_feature_align.cpp',
    ),
}
#: How many files become one, at most: each core gets some.
TOGETHER = 20


def join_sources(source: Path) -> None:
    """Joins the C++ files of mmcv's ops, each of which reads torch's headers for 15 seconds.

    A file ``x.cpp`` becomes ``x.cpp.part``, which a file ``joined_<n>.cpp`` includes. Macros of a
    part end with it.

    Args:
        source (Path): An unpacked source of mmcv.
    """
    for name, alone in FOLDERS.items():
        folder = source / name
        small = [file for file in sorted(folder.glob('*.cpp')) if file.name not in alone]
        for start in range(0, len(small), TOGETHER):
            parts = small[start : start + TOGETHER]
            text = ''.join(_included(file) for file in parts)
            (folder / f'joined_{start // TOGETHER}.cpp').write_text(text, encoding='utf-8')
        for file in small:
            file.rename(file.with_name(f'{file.name}.part'))


def is_joined(source: Path) -> bool:
    """Whether :func:`join_sources` has run on a source."""
    return any((source / name / 'joined_0.cpp').exists() for name in FOLDERS)


def _included(file: Path) -> str:
    """Lines that include a file and forget its macros."""
    text = file.read_text(encoding='utf-8')
    macros = dict.fromkeys(re.findall(r'^[ \t]*#[ \t]*define[ \t]+(\w+)', text, re.MULTILINE))
    return f'#include "{file.name}.part"\n' + ''.join(f'#undef {name}\n' for name in macros)
