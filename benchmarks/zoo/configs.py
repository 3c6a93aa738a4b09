"""The configs of the wheels: which ones are segmentors and detectors, and which are the same."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import zip_longest

from benchmarks.zoo.shrinking import RUNGS, class_of, shrunken
from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.stack import shipped_config

LIBRARIES = 'mmseg', 'mmdet'


@dataclass(frozen=True)
class Candidate:
    """A config of a wheel.

    Args:
        name (str): Such as ``'mmseg::fcn/....py'``.
        model (str): A digest of its shrunken model: configs with the same one differ in their
            data or schedules alone. Defaults to nothing: it is no segmentor and no detector.
        reason (str): Why it is left out. Defaults to nothing.
    """

    name: str
    model: str = ''
    reason: str = ''


def names(only: Sequence[str] = ()) -> list[str]:
    """The names of all configs that say how to train something.

    Args:
        only (Sequence[str]): Patterns such as ``'mmseg::fcn/*'``. Defaults to ``()``: all.
    """
    found = []
    for library in LIBRARIES:
        root = shipped_config(f'{library}::.')
        for file in sorted(root.rglob('*.py')):
            path = file.relative_to(root)
            if len(path.parts) > 1 and '_base_' not in path.parts and path.parts[0] != 'common':
                found.append(f'{library}::{path}')
    return [one for one in found if not only or any(fnmatch(one, pattern) for pattern in only)]


def candidate(name: str) -> Candidate:
    """Reads a config, and says whether it is a segmentor or a detector that trains."""
    library = name.partition('::')[0]
    try:
        cfg = read_config(name)
    except (UsageError, FileNotFoundError) as error:
        return Candidate(name, reason=without_paths(str(error).removeprefix(f'{name} ')))
    if cfg.get('train_dataloader') is None:
        return Candidate(name, reason='does not train')
    cls = class_of(cfg.model.get('type'), library)
    if not _is_task_model(cls):
        return Candidate(name, reason=f'{cfg.model.get("type")} is no segmentor and no detector')
    if any(base.__name__ == 'SemiBaseDetector' for base in getattr(cls, '__mro__', ())):
        return Candidate(name, reason=f'{cls.__name__} is a pair of student and teacher itself')
    model = shrunken(cfg, library, RUNGS[0])
    return Candidate(name, hashlib.sha256(repr(model).encode()).hexdigest()[:12])


def without_paths(text: str) -> str:
    """A message without the folders of this machine.

    Examples:
        >>> without_paths("no file '/home/me/configs/a.py'")
        "no file '.../a.py'"
    """
    return re.sub(r'/\S*/', '.../', text)


def candidates(
    found: Sequence[str], each: int | None, known: Mapping[str, Candidate]
) -> list[Candidate]:
    """Reads configs.

    Args:
        found (Sequence[str]): Their names.
        each (int, optional): The rest of a family is not read once it has so many different
            models; None: all are read.
        known (Mapping[str, Candidate]): Those that need not be read, by name.
    """
    read, models = [], defaultdict(set)
    for name in found:
        if each is None or len(models[family_of(name)]) < each:
            read.append(one := known.get(name) or candidate(name))
            models[family_of(name)] |= {one.model} - {''}
    return read


def family_of(name: str) -> str:
    """The library and the folder of a config, such as ``'mmseg/fcn'``."""
    library, _, path = name.partition('::')
    return f'{library}/{path.split("/")[0]}'


def _is_task_model(cls: type | None) -> bool:
    if cls is None:  # of a library that is not installed: the attempt will tell
        return True
    return any(issubclass(cls, base) for base in _bases())


@cache
def _bases() -> tuple[type, ...]:
    from mmdet.models.detectors.base import BaseDetector
    from mmseg.models.segmentors.base import BaseSegmentor

    return BaseDetector, BaseSegmentor


def groups(found: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates that train, those of one model together."""
    together: dict[str, list[Candidate]] = {}
    for one in found:
        if one.model:
            together.setdefault(one.model, []).append(one)
    return list(together.values())


def in_turn(found: Sequence[list[Candidate]]) -> list[list[Candidate]]:
    """Groups in the order in which they are tried: the first of each family, then the second...

    Those of more configs come first in their family.
    """
    families: dict[str, list[list[Candidate]]] = {}
    for group in sorted(found, key=len, reverse=True):
        families.setdefault(family_of(group[0].name), []).append(group)
    turns = zip_longest(*families.values())
    return [group for turn in turns for group in turn if group is not None]
