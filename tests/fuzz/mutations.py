"""Mutations of one leaf of a config, and what of them still makes sense."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, NamedTuple

Path = tuple[Any, ...]


class Mutation(NamedTuple):
    """One change of a config.

    Args:
        path (tuple): Keys and positions down to what is changed.
        kind (str): What is done to it.
        value (Any): What stands there now; for a deletion and a misspelling, what stood there.
        config (dict): The whole config with the change.
    """

    path: Path
    kind: str
    value: Any
    config: dict

    def __str__(self) -> str:
        return f'{self.kind} at {".".join(map(str, self.path))}: {self.value!r}'


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """The places of a config: all that lie below its top."""
    if path:
        yield path
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if _several(value) else ()
    )
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


def _several(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _thawed(value: Any) -> Any:
    """A copy with lists in the place of tuples, which cannot be changed."""
    if isinstance(value, dict):
        return {key: _thawed(inner) for key, inner in value.items()}
    return [_thawed(inner) for inner in value] if _several(value) else value


#: What the framework reads before a Distiller is there.
TOP = (('_scope_',), ('type',))

OTHERS = ['text', 7, 2.5, True, None, [], {}, [1], ['a', 'b'], dict(type='mmkd_plugin.HintLoss')]
SPELLINGS = [lambda s: s[:-1], lambda s: s + s[-1], lambda s: s[1:] + s[0], str.upper]

VALUES: dict[str, Callable[[Any, random.Random], Any]] = {
    'type': lambda old, draw: draw.choice([x for x in OTHERS if type(x) is not type(old)]),
    'nest': lambda old, draw: draw.choice([[old], dict(value=old), [[old]]]),
    'huge': lambda old, draw: draw.choice([10**15, 1e300, 1e30]),
    'negative': lambda old, draw: -old if isinstance(old, Real) and old > 0 else -1,
    'nan': lambda old, draw: draw.choice([math.nan, math.inf, -math.inf]),
    'unicode': lambda old, draw: draw.choice(['\u65e5\u672c', 'na\u00efve \u202e', '', ' ', '\0']),
    'list': lambda old, draw: [old, old],
    'none': lambda old, draw: None,
    'zero': lambda old, draw: 0,
}
KINDS = ('delete', 'misspell', *VALUES)


def mutated(config: dict, draw: random.Random) -> Mutation:
    """A copy of a config with one change at random."""
    changed = _thawed(config)
    path = draw.choice([p for p in paths_of(changed) if p not in TOP])
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    kind = draw.choice([k for k in KINDS if isinstance(holder, dict) or k != 'misspell'])
    if kind == 'huge' and is_foreign(path):
        kind = 'nan'  # some libraries loop as often as they are told to
    if kind == 'delete':
        del holder[path[-1]]
        return Mutation(path, kind, old, changed)
    if kind == 'misspell':
        wrong = draw.choice(SPELLINGS)(path[-1])
        if wrong in holder:  # a letter alone has no letters to swap
            wrong += 'x'
        changed_items = [(wrong if k == path[-1] else k, v) for k, v in holder.items()]
        holder.clear()
        holder.update(changed_items)
        return Mutation((*path[:-1], path[-1]), kind, wrong, changed)
    holder[path[-1]] = VALUES[kind](old, draw)
    return Mutation(path, kind, holder[path[-1]], changed)


#: Keys of our own models, inside the config of a teacher.
OURS_INSIDE = {'source', 'path', 'blocks', 'stride'}


def is_foreign(path: Path) -> bool:
    """Whether a place lies in a model of the libraries, whose classes judge it."""
    inside = path[:1] == ('student',) or ('config' in path[:3] and path[0] == 'teacher')
    return (inside or 'head' in path[:2]) and not OURS_INSIDE.intersection(path)


def _whole(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, Real) and not isinstance(x, bool) and low <= x <= high


def _weight(x: Any) -> bool:
    if x == 'auto' or (isinstance(x, dict) and [*x] == ['auto']):
        return x == 'auto' or SENSIBLE['auto'](x['auto'])
    weights = x if _several(x) and x else [x]
    return all(map(_number(0, 1e12), weights)) and any(weights)


def _is_bool(x: Any) -> bool:
    return type(x) is bool


def _pool(x: Any) -> bool:
    return x is None or _whole(1)(x) or (isinstance(x, float) and 0 < x < 1)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or check(x)


def _text(x: Any) -> bool:
    return isinstance(x, str) and x.strip() != ''


def _list_of_dicts(x: Any) -> bool:
    return _several(x) and len(x) > 0 and all(isinstance(one, dict) for one in x)


def _empty(x: Any) -> bool:
    return x is None or x == {}


#: What makes sense for a key of ours, or for all that stands in its list.
SENSIBLE: dict[str, Callable[[Any], bool]] = dict(
    start=_whole(0),
    stop=_or_none(_whole(1)),
    ramp=_whole(0),
    tau=_number(0.001, 1000),
    p=_number(0.01, 100),
    margin=_number(1e-6, 1e6),
    pool=_pool,
    ignore_index=_or_none(_whole(-math.inf)),
    num_positions=_whole(3),
    max_classes=_whole(1),
    score_thr=_number(1e-9, 1 - 1e-9),
    seed=_whole(-math.inf),
    kernel_size=_whole(1, 101),
    width=_number(0.1, 100),
    depth=_whole(1, 100),
    loss_weight=_weight,
    sigmoid=_is_bool,
    detach_norm=_is_bool,
    gather=_is_bool,
    by_epoch=_is_bool,
    compile=_is_bool,
    strict=_is_bool,
    bias=_is_bool,
    curve=lambda x: x in ('linear', 'cosine', 'exp'),
    auto=_number(1e-9, 1000),
    combine=lambda x: x in ('mean', 'confidence', 'labels'),
    classes=_whole(1, 10**6),
    pixels=_whole(1, 10**6),
    regions=_whole(1, 10**6),
    queue=_whole(0, 10**6),
    draw=lambda x: x in ('class', 'first'),
    scope=lambda x: x in ('token', 'sample'),
    blocks=lambda x: _whole(-2, 1)(x) or (_several(x) and x and all(map(_whole(-2, 1), x))),
    stride=_or_none(_whole(1, 10**4)),
    path=lambda x: False,
    source=lambda x: False,
    dataset=lambda x: False,
    ratio=_number(0.5, 1000),
    only=_is_bool,
    threshold=_number(0, 0.999),
    pseudo_labels=_or_none(_number(0, 0.999)),
    unlabelled=lambda x: x is None,
    views=_or_none(lambda x: x in (1, 2) and x is not True),
    checkpoint=lambda x: x is None,
    ignore=lambda x: _several(x) and all(map(_text, x)),
    name=_text,
    head=_empty,
    task=_or_none(lambda x: isinstance(x, dict)),
    schedule=_empty,
    connector=lambda x: x in (None, 'auto') or _list_of_dicts(x),
    explainer=lambda x: False,
    tap=lambda x: _text(x) or (_several(x) and all(map(_text, x)) and len(set(x)) == len(x)),
)
SENSIBLE['norm'] = lambda x: x is None or _is_bool(x) or SENSIBLE['tap'](x)
SENSIBLE['teacher'] = lambda x: isinstance(x, (dict, list))
SENSIBLE |= dict.fromkeys(('student_tap', 'teacher_tap', 'scores'), SENSIBLE['tap'])

#: Keys of ours that have to be there.
REQUIRED = {
    *('student', 'config', 'tap', 'student_tap', 'teacher_tap', 'loss', 'neck', 'path', 'scores'),
    *('distill', 'explainer', 'source', 'classes', 'dataset', 'threshold', 'auto'),
}


def makes_sense(change: Mutation) -> bool:
    """Whether a changed config may be built."""
    if is_foreign(change.path):
        return True
    key = next(k for k in reversed(change.path) if isinstance(k, str))
    if change.path == ('task', 'loss_weight') and change.kind == 'zero':
        return True
    if change.path[0] == 'unlabelled' and key == 'teacher' and change.value is None:
        return True  # there is one alone
    is_term = change.path[0] == 'distill' and len(change.path) == 2
    if change.kind == 'misspell':
        return is_term and change.value.isidentifier()
    if change.kind == 'delete':
        return key not in REQUIRED
    if isinstance(change.path[-1], int) and key != 'teacher':  # one of a list
        return not _several(change.value) and SENSIBLE.get(key, lambda x: False)(change.value)
    return SENSIBLE.get(key, lambda x: False)(change.value)
