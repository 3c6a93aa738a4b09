"""docs/zoo.md: how many configs work, and why the others do not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.zoo.attempt import FAILS, NOT_OURS, SIBLING, TRAIN_ALONE, TRAINS, WORKS
from benchmarks.zoo.configs import family_of
from benchmarks.zoo.records import Record
from mmkd_plugin.saving import write_text

#: Characters of a reason in a table.
WIDTH = 160

INTRO = """# The whole zoo

`tools/zoo_sweep.py` writes this page from `benchmarks/results/zoo.jsonl` and from nothing else. It
tries the configs that mmsegmentation and mmdetection ship, each as a student:

1. The model is made small by the names of its keys: channels, layers, queries, classes, images.
2. It trains for a step alone, on made-up images on a CPU, with its own optimizer and hooks, and
   predicts an image. If it does not train with less shrinking either, the config is **not ours**.
3. `tools/distill.py` distils it for a step. The teacher has random weights: a small PSPNet for
   segmentors, a small RetinaNet for detectors; with `--sibling` the same model with twice the
   channels, or with as many where that cannot be built.
4. The student predicts an image, unless it does not predict alone either. Its checkpoint is loaded
   into the stock model: no key may be missing, none may be left over.

Configs whose small models are the same, such as other schedules of one model, are tried once and
count each.

```shell
make zoo                                        # goes on where it was stopped
make zoo OPTIONS='--per-family 1'               # one model of each folder
make zoo OPTIONS='--only "mmdet::detr/*" --again fails'
make zoo OPTIONS='--per-family 1 --sibling'     # with a larger sibling as the teacher
```
"""

#: What is said of those that do not train alone.
ELSEWHERE = """\
Here, on a CPU without a network. Some need a GPU for an operation ("for device cpu not found"),
others a further library, or weights of a language model that are downloaded.
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
    tried = [one for one in records if one.outcome in (*TRAIN_ALONE, NOT_OURS)]
    shared = with_shared_teacher(tried)
    siblings = [one for one in tried if one.teacher == SIBLING]
    seen = len({one.config for one in records})
    parts = [INTRO, f'{seen} of {shipped} configs have been looked at.', '']
    parts += [*_counts(shared, 'the teacher that all share')]
    if siblings:
        parts += _counts(siblings, 'a larger sibling as the teacher')
    parts += ['', '## By folder', '', *_families(shared)]
    parts += ['', '## What fails', '', *_reasons(tried, FAILS)]
    parts += ['', '## What trains, but does not predict alone', '']
    parts += _reasons(shared, TRAINS)
    parts += ['', '## What does not train alone', '', ELSEWHERE, *_reasons(shared, NOT_OURS)]
    others = [one for one in records if one not in tried]
    if others:
        parts += ['', '## Left out', '', 'No segmentors or detectors that train:', '']
        parts += _table(('reason', 'configs', 'such as'), _by_reason(others))
    return '\n'.join(parts) + '\n'


class Counts(NamedTuple):
    """How many configs get how far.

    Args:
        alone (int): Train alone.
        distilled (int): Of these, train distilled, too; their checkpoints load.
        predict (int): Of these, predict.
    """

    alone: int
    distilled: int
    predict: int


def counts_of(records: Sequence[Record]) -> Counts:
    """Counts outcomes.

    Args:
        records (Sequence[Record]): Those with one kind of teacher.
    """
    outcomes = Counter(one.outcome for one in records)
    works = outcomes[WORKS]
    return Counts(sum(outcomes[one] for one in TRAIN_ALONE), works + outcomes[TRAINS], works)


def with_shared_teacher(records: Sequence[Record]) -> list[Record]:
    """The outcomes with the teacher that all students of a library share.

    Args:
        records (Sequence[Record]): All outcomes.
    """
    return [one for one in records if one.teacher != SIBLING]


def _counts(records: Sequence[Record], teacher: str) -> list[str]:
    """How many there are, in a few sentences."""
    counts = counts_of(records)
    share = f' ({100 * counts.distilled / counts.alone:.1f} %)' if counts.alone else ''
    models = len({one.tried for one in records})
    lines = [
        f'With {teacher}: {len(records)} configs of {models} different models were tried,',
        f'{counts.alone} train alone, **{counts.distilled} of these work{share}**.',
    ]
    if rest := counts.distilled - counts.predict:
        lines.append(f'{counts.predict} of them predict; {rest} do not predict alone either.')
    return lines


def _families(records: Sequence[Record]) -> list[str]:
    """A line for each folder."""
    together: dict[str, list[Record]] = defaultdict(list)
    for one in records:
        together[family_of(one.config)].append(one)
    rows = []
    for name, mine in sorted(together.items()):
        counts = counts_of(mine)
        kinds = Counter(_kinds(one.compared) for one in mine if one.compared)
        most = kinds.most_common(1)[0][0] if kinds else ''
        rows.append((name, len(mine), counts.alone, counts.distilled, most))
    return _table(('folder', 'configs', 'train alone', 'work', 'compares'), rows)


def _kinds(compared: str) -> str:
    """What is compared, without how."""
    return ', and '.join(term.partition(':')[0] for term in compared.split('; and '))


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
