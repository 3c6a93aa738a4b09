"""Names of classes: the student's data set has some, and a teacher was trained on some."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.fileio import list_from_file
from mmengine.logging import MessageHub, print_log
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor

from mmkd_plugin.categories import categories_of, in_order_of_file
from mmkd_plugin.checkpoint import meta_of
from mmkd_plugin.explanations import Scores
from mmkd_plugin.taps import Maps, Tap, Taps, as_list
from mmkd_plugin.taps.class_scores import ClassScores
from mmkd_plugin.words import some

Names = tuple[str, ...]

#: The key of a data set whose label maps have no class in their 0.
ZERO = 'reduce_zero_label'

#: How class scores lie in each map of a tap, None for maps of something else.
ScoresOfTaps = Mapping[Tap, Sequence[ClassScores | None]]

_STUDENT: ContextVar[Names | None] = ContextVar('classes of the student', default=None)
_REDUCES: ContextVar[bool | None] = ContextVar('reduce_zero_label of the student', default=None)


@dataclass(frozen=True)
class ClassOrder:
    """Where a teacher has the student's classes.

    Args:
        numbers (tuple[int, ...]): The teacher's number of each class of the student.
        classes (int): How many classes the teacher has.

    Examples:
        >>> order = ClassOrder((2, 0), 3)
        >>> order.of(torch.tensor([[10, 11, 12]]), ClassScores(1, 3, 3))
        tensor([[12, 10]])
    """

    numbers: tuple[int, ...]
    classes: int
    _indices: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def identity(self) -> bool:
        """Whether both have the same classes in the same order."""
        return self.numbers == tuple(range(self.classes))

    def of(self, tensor: Tensor, scores: ClassScores) -> Tensor:
        """The scores of the student's classes, in the student's order.

        Args:
            tensor (Tensor): The teacher's scores.
            scores (ClassScores): How they lie in it.
        """
        key = tensor.shape[scores.dim], scores.each, tensor.device
        if key not in self._indices:
            index = [*self.numbers, *range(self.classes, scores.each)]  # a background stays behind
            starts = range(0, tensor.shape[scores.dim], scores.each)
            index = [start + number for start in starts for number in index]
            self._indices[key] = torch.tensor(index, device=tensor.device)
        return tensor.index_select(scores.dim, self._indices[key])


def arranged(
    read: Mapping[Tap, Maps], orders: Mapping[Tap, ClassOrder], scores: ScoresOfTaps
) -> dict[Tap, Maps]:
    """What a teacher's taps read, with class scores in the student's order.

    Args:
        read (Mapping[Tap, Maps]): By the tap.
        orders (Mapping[Tap, ClassOrder]): Of the taps whose scores are to be arranged.
        scores (Mapping): How class scores lie in the maps.
    """
    found = dict(read)
    for tap in orders.keys() & found.keys():
        maps = [
            x if one is None else orders[tap].of(x, one)
            for x, one in zip(as_list(found[tap]), scores[tap])
        ]
        found[tap] = maps[0] if isinstance(found[tap], Tensor) else maps
    return found


def arranged_kind(kind: Scores, taps: Taps, orders: Mapping[Tap, ClassOrder]) -> Scores:
    """The kind of class scores behind :func:`arranged`.

    Args:
        kind (Scores): The teacher's own.
        taps (Taps): Where they are read.
        orders (Mapping[Tap, ClassOrder]): Of the taps whose scores are arranged.
    """
    order = orders.get(taps.taps[0])
    return kind if order is None else kind._replace(classes=len(order.numbers))


def arranged_preview(preview: Any, orders: Mapping[Tap, ClassOrder]) -> Any:
    """What a teacher showed of a made-up image, with class scores in the student's order.

    Args:
        preview (Preview): What it showed.
        orders (Mapping[Tap, ClassOrder]): Of the taps whose scores are to be arranged.
    """
    if not orders:
        return preview
    maps, shown = arranged(preview.maps, orders, preview.classes), dict(preview.shown)
    for view in shown:
        if view.kind == 'rois':  # a tap may be there twice, for two stages
            each = [(orders.get(tap), one) for tap in view.taps for one in preview.classes[tap]]
            tensors = zip(as_list(shown[view]), each)
            made = [x if None in pair else pair[0].of(x, pair[1]) for x, pair in tensors]
            shown[view] = made[0] if isinstance(shown[view], Tensor) else made
        elif view.kind != 'explanations':  # gradients have the shapes of the maps
            shown[view] = view.of(maps)
    scores = {v: arranged_kind(kind, v.scores, orders) for v, kind in preview.scores.items()}
    return preview._replace(maps=maps, shown=shown, scores=scores)


# Names --------------------------------------------------------------------------------------------


@contextmanager
def classes_of_the_student(names: Names | None, reduces: bool | None = None) -> Iterator[None]:
    """Lets Distillers that are built inside the block know the classes of their data set.

    Args:
        names (tuple[str, ...], optional): In the order of their numbers; None if not known.
        reduces (bool, optional): Its ``reduce_zero_label``. Defaults to None: not known.
    """
    tokens = _STUDENT.set(names), _REDUCES.set(reduces)
    try:
        yield
    finally:
        _STUDENT.reset(tokens[0])
        _REDUCES.reset(tokens[1])


def classes_at_build() -> Names | None:
    """The classes of the student's data set, as far as they are known while it is built."""
    return _STUDENT.get()


def classes_of_run() -> Names | None:
    """The classes of the data set of the run, once mmengine's runner has loaded it."""
    return _names(MessageHub.get_current_instance().runtime_info.get('dataset_meta'))


def classes_of_checkpoint(checkpoint: Mapping[str, Any]) -> Names | None:
    """The classes that a checkpoint was trained on, in the order of its scores, if it says so.

    Args:
        checkpoint (Mapping): What the file holds.

    Examples:
        >>> classes_of_checkpoint(dict(meta=dict(dataset_meta=dict(classes=['cat', 'dog']))))
        ('cat', 'dog')
    """
    meta = meta_of(checkpoint)
    return _names(meta.get('dataset_meta')) or _names(meta)


def classes_of_config(cfg: Mapping[str, Any]) -> Names | None:
    """The classes of the data set of a config, if it names them.

    Args:
        cfg (Mapping): A whole config, as of a run.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(key) or {}).get('dataset')
        found = _classes_of_dataset(dataset, cfg.get('default_scope'))
        if found:
            return found
    return None


def reduces_zero_label(cfg: Mapping[str, Any]) -> bool | None:
    """Whether the training data of a config have no label 0; None if that is not known.

    Args:
        cfg (Mapping): A whole config, as of a run.
    """
    dataset = _innermost((cfg.get('train_dataloader') or {}).get('dataset'))
    if dataset is None:
        return None
    found, kind = dataset.get(ZERO), _dataset_class(dataset.get('type'), cfg.get('default_scope'))
    for base in getattr(kind, '__mro__', ()) if found is None else ():
        known = inspect.signature(base.__init__).parameters if '__init__' in vars(base) else {}
        if ZERO in known:
            found = known[ZERO].default
            break
    return found if isinstance(found, bool) else None


def classes_as_numbered(
    cfg: Mapping[str, Any], names: Names | None, owner: str, source: str
) -> Names | None:
    """The classes of a teacher in the order of its scores, where a COCO file has another order.

    mmdet numbers labels as the file lists its categories, whatever the order of the names.

    Args:
        cfg (Mapping): The whole config of the teacher.
        names (tuple[str, ...], optional): What its checkpoint says, or the config.
        owner (str): What messages call the teacher.
        source (str): What they call its config.

    Returns:
        tuple[str, ...] | None: In the order of the file if it is there and has just these.
    """
    dataset = _innermost((cfg.get('train_dataloader') or {}).get('dataset'))
    scope, usual = cfg.get('default_scope'), _dataset_class('mmdet.CocoDataset', None)
    if names is None or dataset is None or usual is None or names != classes_of_config(cfg):
        return names
    kind, file = _dataset_class(dataset.get('type'), scope), dataset.get('ann_file')
    root, loads = dataset.get('data_root') or '', getattr(kind, 'load_data_list', None)
    paths = isinstance(file, str) and isinstance(root, str)
    if loads is not usual.load_data_list or not paths:
        return names
    path = Path(root, file)
    try:
        order = in_order_of_file(names, categories_of(path)) if path.is_file() else None
    except (OSError, ValueError):
        return names
    if order is None or order == names:
        return names
    print_log(
        f'{owner[0].upper()}{owner[1:]}: metainfo.classes in {source} is in another order than the '
        f'categories of {path}, by which {kind.__name__} numbers the labels. Its classes are taken '
        f'in this order: {", ".join(order)}; if they are others, say its `classes=[...]`',
        logger='current',
        level=logging.WARNING,
    )
    return order


def _innermost(dataset: Any) -> Mapping[str, Any] | None:
    """The config of the first data set in wrappers."""
    while isinstance(dataset, Mapping):
        inner = dataset.get('dataset') or dataset.get('datasets')
        if not inner:
            return dataset
        dataset = inner[0] if isinstance(inner, (list, tuple)) else inner
    return None


def _classes_of_dataset(dataset: Any, scope: str | None) -> Names | None:
    while isinstance(dataset, Mapping):
        meta = dataset.get('metainfo')
        found = _names(meta)
        if found:
            return found
        if isinstance(meta, Mapping) and isinstance(meta.get('classes'), str):
            return _names_in(meta['classes'])
        inner = dataset.get('dataset') or dataset.get('datasets')
        if not inner:
            return _names(getattr(_dataset_class(dataset.get('type'), scope), 'METAINFO', None))
        dataset = inner[0] if isinstance(inner, (list, tuple)) else inner
    return None


def _names_in(file: str) -> Names | None:
    """The names of a file that is in the place of names, as mmengine reads it."""
    path = Path(file)
    return _names(dict(classes=list_from_file(file))) if path.is_file() else None


def _dataset_class(kind: Any, scope: str | None) -> Any:
    if not isinstance(kind, str):
        return kind
    try:
        with (
            DefaultScope.overwrite_default_scope(scope),
            DATASETS.switch_scope_and_registry(None) as registry,
        ):
            return registry.get(kind)
    except (ImportError, KeyError, RuntimeError):  # no such library or class: nothing is known
        return None


def check_names(names: Any, teacher: str) -> Names | None:
    """The ``classes`` of a teacher, if they are names.

    Args:
        names (Sequence[str], optional): What the config says.
        teacher (str): Name of the teacher.

    Raises:
        ValueError: If they are something else, or one comes twice.
    """
    found = _names(dict(classes=names))
    if names is not None and found is None:
        raise ValueError(
            f"teacher '{teacher}': classes must be a list of distinct names, in the order of its "
            f'scores, got {names!r}'
        )
    return found


def _names(meta: Any) -> Names | None:
    """The names of classes in meta information, as mmengine or its forerunner spells it."""
    if not isinstance(meta, Mapping):
        return None
    names = meta.get('classes', meta.get('CLASSES'))
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    plain = set(map(_plain, names))
    return tuple(names) if names and len(plain) == len(names) else None


@functools.cache  # asked for in each iteration
def _plain(name: str) -> str:
    """A name without what differs between spellings of it."""
    return re.sub(r'[\s_-]+', ' ', name.strip().lower())


def order_between(ours: Names, theirs: Names) -> ClassOrder | None:
    """Where a teacher has the student's classes; None if it lacks one of them.

    Args:
        ours (tuple[str, ...]): The student's.
        theirs (tuple[str, ...]): The teacher's.

    Examples:
        >>> order_between(('cat', 'dog'), ('Dog', 'bird', 'Cat')).numbers
        (2, 0)
    """
    numbers = {_plain(name): number for number, name in enumerate(theirs)}
    found = [numbers.get(_plain(name)) for name in ours]
    return None if None in found else ClassOrder(tuple(found), len(theirs))


def check_same_classes(here: str, theirs: Names | None, teacher: str) -> None:
    """Refuses a teacher of other classes than the student's, or of the same in another order.

    Args:
        here (str): Name of the term in messages.
        theirs (tuple[str, ...], optional): The classes of the teacher, None if not known.
        teacher (str): Name of the teacher in messages.

    Raises:
        ValueError: If both are known, and they differ.
    """
    ours = classes_at_build()
    if ours is None or theirs is None:
        return
    order = order_between(ours, theirs)
    if order is None or not order.identity:
        raise ValueError(
            f"{here}: teacher '{teacher}' has other classes than the student's data set, or the "
            'same in another order; their scores cannot be compared'
        )


# Terms --------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """What a term compares class by class, if these are class scores.

    Args:
        here (str): What messages call the term.
        student (Taps): Taps of the student.
        teacher (Taps): Taps of the teacher.
        probabilities (bool): Whether it compares the probabilities of classes. Defaults to False.
        gradients (bool): Whether these are gradients of the task loss. Defaults to False.
    """

    here: str
    student: Taps
    teacher: Taps
    probabilities: bool = False
    gradients: bool = False


def orders_of(
    compared: Sequence[Compared],
    student: ScoresOfTaps,
    teacher: ScoresOfTaps,
    names: tuple[Names | None, Names | None],
    owner: str,
) -> dict[Tap, ClassOrder]:
    """How class scores of a teacher have to be arranged for the student, by its tap.

    Args:
        compared (Sequence[Compared]): What the terms of this teacher compare.
        student (Mapping): How class scores lie in the student's maps.
        teacher (Mapping): How they lie in the teacher's.
        names (tuple): The student's classes and the teacher's, None where they are not known.
        owner (str): What messages call the teacher.

    Raises:
        ValueError: If scores of other classes are compared.
    """
    orders: dict[Tap, ClassOrder] = {}
    for one in compared:
        if one.gradients:
            _check_labels(one, names, owner)
            continue
        ours = [(tap, s) for tap in one.student for s in student.get(tap, ())]
        theirs = [(tap, s) for tap in one.teacher for s in teacher.get(tap, ())]
        if len(ours) != len(theirs):
            continue  # the term says so
        for (our_tap, s), (tap, t) in zip(ours, theirs):
            if s is None or t is None:
                continue
            _check_form(one, our_tap, s, tap, t, owner)
            order = _order(one, our_tap, s, t, names, owner)
            if order is None or order.identity:
                continue
            if not t.each or t.each < t.classes:
                raise ValueError(_cannot_be_arranged(one.here, tap, t, owner))
            if tap not in orders:
                _say(one, tap, order, owner)
            orders[tap] = order
    return orders


def warn_of_zero_label(
    compared: Sequence[Compared],
    student: ScoresOfTaps,
    teacher: ScoresOfTaps,
    names: tuple[Names | None, Names | None],
    reduces: bool | None,
    owner: str,
) -> None:
    """Warns if class scores are compared, and one of both data sets alone leaves out label 0.

    Args:
        compared (Sequence[Compared]): What the terms of this teacher compare.
        student (Mapping): How class scores lie in the student's maps.
        teacher (Mapping): How they lie in the teacher's.
        names (tuple): The student's classes and the teacher's, None where they are not known.
        reduces (bool, optional): ``reduce_zero_label`` of the teacher's data set.
        owner (str): What messages call the teacher.
    """
    own = _REDUCES.get()
    if None in (own, reduces) or own == reduces:
        return
    order = order_between(*names) if None not in names else None
    if order is not None and not order.identity:
        return  # the names say which scores belong together
    for one in compared:
        shown = [
            scores.get(tap, ())
            for scores, taps in ((student, one.student), (teacher, one.teacher))
            for tap in taps
        ]
        if one.gradients or all(any(each) for each in shown):
            print_log(
                f'{one.here} compares class scores, and the data set of the student has '
                f'{ZERO}={own}, that of {owner} {ZERO}={reduces}: if their label maps are the '
                'same, each class is compared with the next one. Write the same in both, or take '
                f'a teacher that was trained with {ZERO}={own}',
                logger='current',
                level=logging.WARNING,
            )
            return


def _order(
    one: Compared,
    tap: Tap,
    s: ClassScores,
    t: ClassScores,
    names: tuple[Names | None, Names | None],
    owner: str,
) -> ClassOrder | None:
    ours, theirs = names
    if not ours or not theirs or len(ours) != s.classes or len(theirs) != t.classes:
        return None
    order = order_between(ours, theirs)
    if order is not None:
        return order
    known, own = set(map(_plain, theirs)), set(map(_plain, ours))
    lists = [
        f'only the {whose} has {some(repr(name) for name in missing)}'
        for whose, missing in (
            ('student', [name for name in ours if _plain(name) not in known]),
            ('teacher', [name for name in theirs if _plain(name) not in own]),
        )
        if missing
    ]
    raise ValueError(
        f"{one.here}: '{tap}' gives class scores, and {owner} was trained on other classes than "
        f"the student's data set has: {'; '.join(lists)}. Class scores can be compared only for "
        "the same classes: take a teacher of the student's dataset, or tap features below the "
        "classifier; if its names alone are wrong, say the teacher's `classes=[...]`, in the order "
        'of its scores'
    )


def _check_labels(one: Compared, names: tuple[Names | None, Names | None], owner: str) -> None:
    """Refuses a task loss of a teacher for which the labels have other numbers."""
    if None in names:
        return
    order = order_between(*names)
    if order is None or not order.identity:
        kind = 'other classes than' if order is None else 'another order of the classes of'
        raise ValueError(
            f'{one.here}: compares gradients of the task loss, and {owner} was trained on {kind} '
            "the student's data set, so the labels mean something else to it. Take a teacher of "
            "the student's dataset, or a loss on maps"
        )


def _check_form(
    one: Compared, our_tap: Tap, s: ClassScores, tap: Tap, t: ClassScores, owner: str
) -> None:
    """Refuses one score for two classes against a score for each of them."""
    if s.classes == t.classes == 2 and {s.each, t.each} == {1, 2}:
        single, both = ('the student', owner) if s.each == 1 else (owner, 'the student')
        raise ValueError(
            f"{one.here}: '{our_tap if s.each == 1 else tap}' of {single} is one score that tells "
            f"two classes apart (out_channels=1), and {both} has a score for each at '"
            f"{tap if s.each == 1 else our_tap}': these cannot be compared. Give both models the "
            'same out_channels, or tap features below the classifier'
        )


def _cannot_be_arranged(here: str, tap: Tap, t: ClassScores, owner: str) -> str:
    why = 'is one score for two classes' if t.each else 'mixes class scores with other values'
    return (
        f"{here}: {owner} has its classes in another order than the student's data set, and "
        f"'{tap}' {why}, which cannot be brought into the student's order. Take a teacher of the "
        "student's dataset, or tap features below the classifier"
    )


def _say(one: Compared, tap: Tap, order: ClassOrder, owner: str) -> None:
    count, level = len(order.numbers), logging.INFO
    if count == order.classes:
        text = (
            f"{owner} has the student's classes in another order: its scores at '{tap}' are "
            "brought into the student's"
        )
    else:
        text = (
            f"{owner} has {order.classes} classes, among them the student's {count}: its scores at "
            f"'{tap}' are taken for these, in the student's order"
        )
        if one.probabilities:
            level = logging.WARNING
            text += (
                f'; {one.here} compares probabilities, which are then those among these '
                f'{count} classes'
            )
    print_log(f'{text[0].upper()}{text[1:]}.', logger='current', level=level)
