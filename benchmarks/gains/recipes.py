"""The weights that recipes ship with: those of their rows."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gains.records import Record
from benchmarks.gains.rows import groups, main_rows
from benchmarks.gains.settings import set_weight
from benchmarks.gains.tables import ROOT, shipped
from mmkd_plugin.saving import write_text

#: Runs from which a row says what a recipe ships with; one run may be that of a grid.
SEEDS = 2


def write(records: Sequence[Record], root: Path = ROOT) -> None:
    """Gives each recipe with a row of several seeds the weight of that row.

    Args:
        records (Sequence[Record]): All finished runs.
        root (Path): The repository. Defaults to this one.
    """
    for runs in groups(records):
        if not shipped(runs[0].data):
            continue
        for row in main_rows(runs):
            if row.runs < SEEDS:
                continue
            file = root / row.config
            before = file.read_text(encoding='utf-8')
            after = weighted(before, row.weight)
            if after == before:
                continue
            write_text(file, after)
            if find_spec('ruff'):
                format_ = [sys.executable, '-m', 'ruff', 'format', '--quiet', str(file)]
                subprocess.run(format_, check=True)


def weighted(text: str, weight: float | str) -> str:
    """The text of a recipe whose terms have another weight.

    Args:
        text (str): The recipe, which writes each loss of its terms as a call of ``dict``.
        weight (float | str): As in :class:`Record`.

    Raises:
        ValueError: If a term inherits its loss.

    Examples:
        >>> recipe = "model = dict(distill=dict(a=dict(loss=dict(type='L', loss_weight=3))))"
        >>> weighted(recipe, 'auto:2.5')
        "model = dict(distill=dict(a=dict(loss=dict(type='L', loss_weight=dict(auto=2.5)))))"
    """
    if weight == 'recipe':
        return text
    data = text.encode()  # ast counts bytes
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    edits = []
    for loss in losses(ast.parse(text)):
        found = {word.arg: word.value for word in loss.keywords}
        old = found.get('loss_weight')
        config = {'loss_weight': [None] * len(old.elts)} if _is_list(old) else {}
        set_weight(config, weight)
        new = _source(config['loss_weight'])
        if old is None:
            end = starts[loss.end_lineno - 1] + loss.end_col_offset - 1
            comma = '' if data[:end].rstrip().endswith(b',') else ', '
            edits.append((end, end, f'{comma}loss_weight={new}'))
        elif ast.unparse(old) != ast.unparse(ast.parse(new, mode='eval').body):
            begin = starts[old.lineno - 1] + old.col_offset
            edits.append((begin, starts[old.end_lineno - 1] + old.end_col_offset, new))
    for begin, end, new in sorted(edits, reverse=True):
        data = data[:begin] + new.encode() + data[end:]
    return data.decode()


def losses(tree: ast.Module) -> list[ast.Call]:
    """The losses of the terms of a recipe, as it writes them.

    Args:
        tree (ast.Module): The recipe.

    Raises:
        ValueError: If a term has none there.
    """
    words = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    terms = [t for word in words if word.arg == 'distill' for t in word.value.keywords]
    found = []
    for term in terms:
        inner = [word.value for word in term.value.keywords if word.arg == 'loss']
        if not inner:
            raise ValueError(f'the term {term.arg} inherits its loss; write it in the recipe')
        found += inner
    return found


def _is_list(node: ast.expr | None) -> bool:
    return isinstance(node, (ast.List, ast.Tuple))


def _source(weight: float | str | list | dict) -> str:
    """A weight as recipes write it."""
    if isinstance(weight, dict):
        return f'dict(auto={weight["auto"]:g})'
    return repr(weight)
