"""CachedTeacher: reads the maps of a teacher from disk instead of running it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.cache.loading import field_of, map_key
from mmkd_plugin.cache.store import FINGERPRINT, TeacherCache, check_stored, human_size
from mmkd_plugin.cache.wiring import NO_WAY, WIRING
from mmkd_plugin.explanations import Chosen, Explanation, Scores, resized
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.class_scores import ClassScores
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.base import Batch, Lesson, Preview, Teacher, Trial
from mmkd_plugin.teachers.classes import (
    ClassOrder,
    ScoresOfTaps,
    arranged,
    arranged_kind,
    check_names,
)
from mmkd_plugin.teachers.model import checkpoint_hash, config_hash
from mmkd_plugin.views import View, of_kind, taps_of


@MODELS.register_module()
class CachedTeacher(Teacher):
    """A teacher whose maps ``tools/cache_teacher.py`` has stored. The model itself is not loaded.

    It replaces an :class:`OnlineTeacher` in a config. The workers of the data loader read the maps
    and warp them as the pipeline warped the image: :func:`wire` adds :class:`LoadTeacherMaps` to
    the pipeline. The teacher collects the maps of a batch.

    Args:
        path (str): Folder of the cache.
        config (str | dict, optional): Config of the teacher, compared with that of the cache.
            Defaults to None: not compared.
        checkpoint (str, optional): Weights of the teacher, compared with those of the cache.
            Defaults to None: not compared.
        ignore (Sequence[str]): Types of your own transforms in the train pipeline that leave each
            pixel in its place, for a cache of whole images. Defaults to ``()``.
        views (int, optional): How many views of each image are used, of a cache that has views.
            Defaults to None: all.
        name (str): Name in the config and in messages. Defaults to ``'teacher'``.
        classes (Sequence[str], optional): Names of the teacher's classes, in the order of its
            scores. Defaults to None: those in the cache.

    Raises:
        ValueError: If the cache does not exist, is not finished, or is of another teacher.

    Examples:
        >>> from mmkd_plugin.teachers.configs import teacher_configs
        >>> teacher = dict(type='mmkd_plugin.CachedTeacher', path='work_dirs/cache')
        >>> list(teacher_configs(teacher))
        ['teacher']
    """

    stored: ClassVar[bool] = True
    missing: ClassVar[dict[str, str]] = dict(path='the folder that tools/cache_teacher.py wrote')
    unused: ClassVar[tuple[str, ...]] = ('strict', 'inference')

    def __init__(
        self,
        path: str,
        config: str | dict | None = None,
        checkpoint: str | None = None,
        ignore: Sequence[str] = (),
        views: int | None = None,
        name: str = 'teacher',
        classes: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.cache = TeacherCache(path, f"teacher '{name}'.path")
        self._reads: list[Tap] = []
        self._scores: dict[View, Scores] = {}
        self._orders: Mapping[Tap, ClassOrder] = {}
        meta = self.cache.meta
        self.views = self._check_views(views)
        self.warped = self.views is None
        self.class_names = check_names(classes or meta.get('classes'), name)
        self.source = meta['source']
        self.checkpoint = meta['checkpoint']
        for what, key, given, hashed in (
            ('config', 'config', config, lambda: config_hash(config, name)),
            ('checkpoint', 'weights', checkpoint, lambda: checkpoint_hash(checkpoint)),
        ):
            if given is not None and hashed() != meta[key]:
                was = meta['source' if what == 'config' else 'checkpoint']
                now = given if isinstance(given, str) else 'this model dict'
                raise ValueError(
                    f"teacher '{name}': {path} was written by a teacher of another {what}: {was}, "
                    f'which is not the same as {now} now. Write a cache of this one with '
                    f'tools/cache_teacher.py, or leave `{what}` out'
                )

    def _check_views(self, views: int | None) -> int | None:
        there = self.cache.meta.get('views')
        if views is None:
            return there
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ValueError(
                f"teacher '{self.name}': views is a whole number from 1, not {views!r}"
            )
        if there is None:
            raise ValueError(
                f"teacher '{self.name}': {self.cache.path} holds whole images and no views; leave "
                '`views` out, or write a cache with tools/cache_teacher.py --views'
            )
        if views > there:
            raise ValueError(
                f"teacher '{self.name}': views is {views}, and {self.cache.path} has {there} of "
                f'each image; for more: tools/cache_teacher.py --views {views}'
            )
        return views

    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Checks that the cache has the maps and explanations of all views.

        Args:
            student (Trial): The student at build time.
            views (Sequence[View]): All views that :meth:`teach` may be asked for.
            device (torch.device): Not used: nothing runs.

        Returns:
            Preview: Random maps in the shapes of the stored ones.

        Raises:
            ValueError: If the cache lacks something, a view asks for gradients, or the student's
                data preprocessor mixes images.
        """
        owner, meta, size = f"teacher '{self.name}'", self.cache.meta['taps'], student.run.size
        gradient_taps = taps_of(views, 'gradients')
        if gradient_taps:
            raise ValueError(
                f'{owner} is a cache, and {", ".join(map(str, gradient_taps))} is asked for the '
                'gradient of its task loss, which needs the teacher itself: give `config` and '
                '`checkpoint` without `type`'
            )
        for view in views:
            if view.entrance or view.queries or view.rois:
                key = '.through' if view.entrance else '.queries' if view.queries else ''
                raise ValueError(f'{view.term}{key}: {owner} is a cache. {NO_WAY}')
        taps, self._reads = stored_taps(views), taps_of(views)
        check_stored(self.cache, list(map(str, taps)), owner)
        for augment in _batch_augments(student.preprocessor):
            if type(augment).__name__ != 'BatchFixedSizePad':
                raise ValueError(
                    f'{owner} is a cache, and {type(augment).__name__} in `batch_augments` changes '
                    'images after their maps were read; take it out, or train with the teacher '
                    'itself'
                )
        maps: dict[Tap, Maps] = {}
        for tap in taps:
            made = [_made_up(one, size) for one in meta[str(tap)]['maps']]
            maps[tap] = made if meta[str(tap)]['several'] else made[0]
        for view in of_kind(views, 'explanations'):
            check_stored(self.cache, [stored_as(view)], owner)
            about = meta[stored_as(view)]
            self._scores[view] = Scores(*about['scores'])
            features = iter(about['features'])
            for tap, count in zip(view.taps, about['counts']):
                made = [_made_up(next(features), size) for _ in range(count or 1)]
                maps[tap] = made if count else made[0]
        shown = {view: self._example(view, maps) for view in of_kind(views)}
        return Preview(maps, shown, self._scores, size, self._class_scores(maps))

    def _class_scores(self, taps: Iterable[Tap]) -> ScoresOfTaps:
        """How class scores lie in the maps; nothing in a cache that was written without it."""
        about = self.cache.meta['taps']
        noted = {tap: about[str(tap)].get('class_scores') for tap in taps if str(tap) in about}
        return {
            tap: [one and ClassScores(*one) for one in maps] for tap, maps in noted.items() if maps
        }

    def arrange(self, orders: Mapping[Tap, ClassOrder]) -> None:
        """From now on shows class scores in the student's order."""
        self._orders = dict(orders)

    def _example(self, view: View, maps: dict[Tap, Maps]) -> Maps:
        """Returns made-up maps, or a corner of made-up explanations ``(1, C, 8, 8)``."""
        if view.kind == 'maps':
            return view.of(maps)
        about, classes = self.cache.meta['taps'][stored_as(view)], self._scores[view].classes
        with random_state_kept():
            return [torch.rand(1, channels // classes, 8, 8) for channels, *_ in about['maps']]

    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Collects the maps and explanations from the data samples of a batch.

        Args:
            batch (Batch): The batch.
            views (Sequence[View]): Some of the views given to :meth:`prepare`.

        Returns:
            Lesson: The maps and explanations of these views.

        Raises:
            ValueError: If the data samples carry no maps of this teacher.
        """
        read: dict[Tap, Maps] = {}
        for tap in stored_taps(views):
            maps = self._carried(str(tap), batch.inputs, batch.data_samples)
            read[tap] = maps if self.cache.meta['taps'][str(tap)]['several'] else maps[0]
        read = arranged(read, self._orders, self._class_scores(read))
        shown, chosen = {view: view.of(read) for view in of_kind(views, 'maps')}, {}
        for view in of_kind(views, 'explanations'):
            kind = arranged_kind(self._scores[view], view.scores, self._orders)
            chosen[view] = view.choose(read, kind, batch.step)
            shown[view] = self._explanation(batch, view, chosen[view]).pairs()
        return Lesson(shown, chosen)

    def _explanation(self, batch: Batch, view: View, chosen: Chosen) -> Explanation:
        """Selects the chosen classes from the explanations that the data samples carry."""
        classes = chosen.classes.clamp(min=0)
        order = self._orders.get(view.scores.taps[0])
        if order is not None:  # the stored ones have the teacher's numbers
            classes = torch.tensor(order.numbers, device=classes.device)[classes]
        classes = classes[:, :, None, None, None]
        maps = []
        for x in self._carried(stored_as(view), batch.inputs, batch.data_samples):
            x = x.unflatten(1, (self._scores[view].classes, -1))
            picked = x.gather(1, classes.expand(-1, -1, *x.shape[2:]))
            maps.append(resized(picked, batch.inputs.shape[2:]))
        return Explanation(chosen, maps)

    def _carried(self, name: str, inputs: Tensor, data_samples: list | None) -> list[Tensor]:
        """Collects the maps of a tap from data samples and pads them to the size of the batch."""
        field = field_of(self.name)
        if not data_samples or any(field not in sample for sample in data_samples):
            raise ValueError(
                f"teacher '{self.name}' is a cache, and the batch carries no maps of it: {WIRING}"
            )
        carried = [sample.get(field) for sample in data_samples]
        about, maps = self.cache.meta['taps'][name], []
        for number, ((_, *strides), fill) in enumerate(zip(about['maps'], about['fill'])):
            size = [-(-side // stride) for side, stride in zip(inputs.shape[2:], strides)]
            found = [element.get(map_key(name, number)) for element in carried]
            if all(list(one.shape[1:]) == size for one in found):  # no padding to fill
                maps.append(torch.stack(found).to(inputs.device))
                continue
            out = torch.tensor(fill, device=inputs.device).view(1, -1, 1, 1)
            out = out.repeat(len(inputs), 1, *size)
            for one, x in zip(out, found):
                one[:, : x.shape[1], : x.shape[2]] = x
            maps.append(out)
        return maps

    def weights_hash(self) -> str:
        """Returns the hash of the weights with which the cache was written."""
        return self.cache.meta['weights']

    def config_hash(self) -> str:
        """Returns a hash of how the cache was written: by which model, and stored how."""
        meta = self.cache.meta
        said = {key: meta.get(key) for key in FINGERPRINT if key not in ('weights', 'taps')}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def classes(self, tap: Tap) -> int | None:
        """Returns the number of classes of the teacher's head around a tap, None if unknown."""
        if tap in self._orders:  # the student's
            return len(self._orders[tap].numbers)
        return self.cache.meta['taps'][str(tap)]['classes']

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, SimpleNamespace | None]]:
        """Returns weight and bias of the batch norms that feed maps; see :meth:`Teacher.norms`.

        Raises:
            ValueError: If a named batch norm is not in the cache.
        """
        meta = self.cache.meta
        if names is None:
            names = [name for tap in taps for name in meta['taps'][str(tap)]['norms']]
        for name in names:
            if name and name not in meta['norms']:
                raise ValueError(
                    f"teacher '{self.name}': {self.cache.path} holds no batch norm '{name}' (it "
                    f'has: {", ".join(meta["norms"]) or "none"}). Write the cache with this '
                    'config, which asks for it'
                )
        return [(name, _norm(meta['norms'][name]) if name else None) for name in names]

    def work(self) -> str:
        """Describes the cache and the maps that are read, in a line of the plan."""
        size = human_size(Path(self.cache.path, 'data.mdb').stat().st_size)
        views = '' if self.views is None else f' of {self.views} views of each image'
        return (
            f"teacher '{self.name}' ({self.source}): cached in {self.cache.path} ({size}), not in "
            f'memory; reads {", ".join(map(str, self._reads))}{views}'
        )


def stored_as(view: View) -> str:
    """Returns the name of the records with the explanations of a view."""
    return view.explainer.stored_as(view.taps)


def stored_taps(views: Sequence[View]) -> list[Tap]:
    """Returns the taps whose maps are stored; for explanations, those of the class scores."""
    taps = (view.taps if view.kind == 'maps' else view.scores for view in views)
    return list(dict.fromkeys(tap for one in taps for tap in one))


def _norm(values: Sequence[Sequence[float]]) -> SimpleNamespace:
    weight, bias = map(torch.tensor, values)
    return SimpleNamespace(weight=weight, bias=bias)


def _batch_augments(preprocessor: nn.Module) -> list:
    """Returns the batch augmentations of a data preprocessor."""
    augments = getattr(preprocessor, 'batch_augments', None) or ()
    augments = getattr(augments, 'augments', augments)  # `InOrder` of this package has a list
    return list(augments) if isinstance(augments, (Sequence, nn.ModuleList)) else [augments]


def _made_up(about: Sequence[int], size: int) -> Tensor:
    """Returns a random map with channels and strides ``[C, h, w]`` of a square image."""
    channels, *strides = about
    return torch.randn(1, channels, *(-(-size // stride) for stride in strides))
