"""docs/zoo.md: how many configs work, and why the others do not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.zoo.attempt import FAILS, NOT_OURS, SIBLING, WORKS
from benchmarks.zoo.configs import family_of
from benchmarks.zoo.records import Record
from mmkd_plugin.saving import write_text

#: Characters of a reason in a table.
WIDTH = 160

INTRO = """# The whole zoo

`tools/zoo_sweep.py` writes this page from `benchmarks/results/zoo.jsonl` and from nothing else. It
tries the configs that mmsegmentation and mmdetection ship, each as a student:

1. The model is made small by the names of its keys: channels, layers, queries, classes, images.
2. It trains for a step alone, on made-up images on a CPU, with its own optimizer and hooks. If it
   does not train with less shrinking either, the config is **not ours**.
3. `tools/distill.py` distils it for a step. The teacher has random weights: a small PSPNet for
   segmentors, a small RetinaNet for detectors; with `--sibling` the same model with twice the
   channels, or with as many where that cannot be built.
4. The student predicts an image, and its checkpoint is loaded into the stock model: no key may be
   missing, none may be left over.

Configs whose small models are the same, such as other schedules of one model, are tried once and
count each.

```shell
make zoo                                        # goes on where it was stopped
make zoo OPTIONS='--per-family 1'               # one model of each folder
make zoo OPTIONS='--only "mmdet::detr/*" --again fails'
make zoo OPTIONS='--per-family 1 --sibling'     # with a larger sibling as the teacher
```
"""


def write(records: Sequence[Record], shipped: int, path: Path) -> None:
    """Writes the page.

    Args:
        records (Sequence[Record]): All outcomes.
        shipped (int): How many configs there are.
        path (Path): The file.
    """
    write_text(path, text_of(records, shipped))


def text_of(records: Sequence[Record], shipped: int) -> str:
    """The page.

    Args:
        records (Sequence[Record]): All outcomes.
        shipped (int): How many configs there are.
    """
    tried = [one for one in records if one.outcome in (WORKS, FAILS, NOT_OURS)]
    shared = [one for one in tried if one.teacher != SIBLING]
    siblings = [one for one in tried if one.teacher == SIBLING]
    seen = len({one.config for one in records})
    parts = [INTRO, f'{seen} of {shipped} configs have been looked at.', '']
    parts += [*_counts(shared, 'the teacher that all share')]
    if siblings:
        parts += _counts(siblings, 'a larger sibling as the teacher')
    parts += ['', '## By folder', '', *_families(shared)]
    parts += ['', '## What fails', '', *_reasons(tried, FAILS)]
    parts += ['', '## What does not train alone', '', *_reasons(shared, NOT_OURS)]
    others = [one for one in records if one not in tried]
    if others:
        parts += ['', '## Left out', '', 'No segmentors or detectors that train:', '']
        parts += _table(('reason', 'configs', 'such as'), _by_reason(others))
    return '\n'.join(parts) + '\n'


def _counts(records: Sequence[Record], teacher: str) -> list[str]:
    """How many there are, in a sentence."""
    outcomes = Counter(one.outcome for one in records)
    ours = outcomes[WORKS] + outcomes[FAILS]
    share = f' ({100 * outcomes[WORKS] / ours:.1f} %)' if ours else ''
    models = len({one.tried for one in records})
    return [
        f'With {teacher}: {len(records)} configs of {models} different models were tried,',
        f'{ours} train alone, **{outcomes[WORKS]} of these work{share}**.',
    ]


def _families(records: Sequence[Record]) -> list[str]:
    """A line for each folder."""
    together: dict[str, list[Record]] = defaultdict(list)
    for one in records:
        together[family_of(one.config)].append(one)
    rows = []
    for name, mine in sorted(together.items()):
        outcomes = Counter(one.outcome for one in mine)
        kinds = Counter(one.compared.partition(':')[0] for one in mine if one.outcome == WORKS)
        rows.append(
            (
                name,
                len(mine),
                outcomes[WORKS] + outcomes[FAILS],
                outcomes[WORKS],
                kinds.most_common(1)[0][0] if kinds else '',
            )
        )
    return _table(('folder', 'configs', 'train alone', 'work', 'compares'), rows)


def _reasons(records: Sequence[Record], outcome: str) -> list[str]:
    """A line for each reason of an outcome."""
    found = [one for one in records if one.outcome == outcome]
    if not found:
        return ['Nothing.']
    return _table(('reason', 'configs', 'such as'), _by_reason(found))


def _by_reason(records: Sequence[Record]) -> list[tuple[str, int, str]]:
    counts = Counter(one.reason for one in records)
    first = {one.reason: one.config for one in reversed(records)}
    return [(_cell(reason), n, f'`{first[reason]}`') for reason, n in counts.most_common()]


def _cell(text: str) -> str:
    text = text.replace('|', '\\|')
    return text if len(text) <= WIDTH else f'{text[:WIDTH]}...'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ['---'] * len(head), *rows]
    return [f'| {" | ".join(map(str, line))} |' for line in lines]
