"""SelfTeacher: a teacher on the student's own maps that is trained along with the student."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkd_plugin.building import build_module
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.losses.numerics.checks import weight
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Tap, TapReader, Taps, as_list, classes_around, find_module
from mmkd_plugin.taps.dry_run import DryRun, check_ran, read_once
from mmkd_plugin.taps.task_gradient import scaled_losses
from mmkd_plugin.teachers.base import Batch, Lesson, Preview, Teacher, Trial
from mmkd_plugin.teachers.model import without_pretraining
from mmkd_plugin.views import View, of_kind, taps_of
from mmkd_plugin.words import type_name


@MODELS.register_module()
class StudentMaps(BaseModule):
    """Takes the place of a backbone and returns the maps that it gets.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.teachers.self_teacher import StudentMaps
        >>> maps = torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)
        >>> StudentMaps()(maps) is maps
        True
    """

    def forward(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the maps as they are.

        Args:
            maps (Sequence[Tensor]): Maps ``(N, C, H, W)``.

        Returns:
            Sequence[Tensor]: The same maps.
        """
        return maps


@MODELS.register_module()
class SelfTeacher(nn.Module, Teacher):
    """A network on the student's maps that learns the student's task and teaches the student.

    It is a model of the student's own class. The student's maps take the place of its backbone, a
    neck refines them, and heads like the student's learn from the labels. So its taps have the
    same names as in the student. The neck of a classifier pools, so it stays, and the maps are
    refined at ``'backbone'``. Its task loss trains it and, through the maps, the student. Terms
    read its maps as targets, without gradient. It is saved beside the student and not used at
    inference.

    Args:
        tap (str | list[str]): Taps at which it reads the student.
        neck (dict): A module that takes a list of maps and returns a list of maps.
            ``in_channels``, ``channels`` and ``num_levels`` are filled in if it takes them.
        head (dict, optional): Settings of its heads that differ from the student's: of
            ``decode_head`` for a segmentor, of ``bbox_head`` for a detector, of ``head`` for a
            classifier. Defaults to None.
        loss_weight (float): Factor on its task loss, above 0. Defaults to 1.0.
        name (str): Name in the config and in messages. Defaults to ``'self_teacher'``.

    Attributes:
        model (nn.Module): The network, built by :meth:`prepare`.
        costs (list[str]): Parameters and multiply-adds of its parts, for the plan.

    Examples:
        >>> from mmkd_plugin import SelfTeacher
        >>> teacher = SelfTeacher(
        ...     tap=['backbone.layer3', 'backbone.layer4'],
        ...     neck=dict(type='mmkd_plugin.BiFPNSelfTeacher'))
        >>> [str(tap) for tap in teacher.student_taps]
        ['backbone.layer3', 'backbone.layer4']
    """

    learns: ClassVar[bool] = True
    missing: ClassVar[dict[str, str]] = dict.fromkeys(
        ('tap', 'neck'),
        'a self-teacher has a tap in the student and a neck, such as '
        "tap='backbone', neck=dict(type='mmkd_plugin.BiFPNSelfTeacher')",
    )

    def __init__(
        self,
        tap: str | Sequence[str],
        neck: dict,
        head: dict | None = None,
        loss_weight: float = 1.0,
        name: str = 'self_teacher',
    ) -> None:
        super().__init__()
        self.name = name
        self.source = f"'{tap}' of the student" if isinstance(tap, str) else 'the student'
        self.tap = Taps.parse(tap)
        if self.tap.repeats:
            raise ValueError(f'tap: {self.tap} names a tap twice; name each once')
        self.student_taps = self.tap.taps
        self.loss_weight = weight('loss_weight', loss_weight)
        if self.loss_weight == 0:
            raise ValueError(
                'loss_weight=0: the self-teacher would learn nothing, and teach noise; give a '
                'number above 0'
            )
        self._neck = neck
        self._head = head or {}
        self._run: DryRun | None = None
        self._size = 0
        self.costs: list[str] = []

    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Builds the network for the student's maps and tries it.

        Args:
            student (Trial): The student at build time.
            views (Sequence[View]): All views that :meth:`teach` may be asked for.
            device (torch.device): Not used: the trial runs on the CPU.

        Returns:
            Preview: The results of the trial.

        Raises:
            ValueError: If the network cannot be built or does not run on these maps, or a view is
                not of maps.
        """
        here = f"self-teacher '{self.name}'"
        if not isinstance(student.config, dict):
            raise ValueError("a self-teacher is built from the student's config; give a dict")
        for view in of_kind(views, 'gradients', 'explanations', 'queries', 'rois'):
            others = dict(gradients='gradients of task losses', rois='RoI heads')
            what = others.get(view.kind, view.kind)
            raise ValueError(
                f'{view.term}: {view.loss} compares {what}, which a self-teacher cannot show'
            )
        for view in views:
            if view.entrance:
                raise ValueError(
                    f'{view.term}.through: {here} learns along, and maps of the student go through '
                    'a frozen teacher only; leave it out'
                )
        maps, taps = tuple(as_list(self.tap.of(student.run.values))), taps_of(views)
        samples = student.run.samples and [sample.cpu() for sample in student.run.samples]
        neck, refined = self._try_neck(maps, here)
        with errors_named(f'{here}: head'):
            config = self._config(student.config, [x.shape[1] for x in refined], here)
        with errors_named(f'{here}: model', config):
            self.model = MODELS.build(config)
        setattr(self.model, 'backbone' if _is_classifier(config) else 'neck', neck)
        for tap in taps:
            find_module(self.model, tap, here)
        run = self._try(maps, samples, taps, len(refined), here)
        self._run = run.without_maps()
        if student.sync:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.train()
        self._size = student.run.size
        shown = {view: view.of(run.values) for view in of_kind(views)}
        return Preview(run.values, shown, {}, self._size)

    def _try_neck(self, maps: tuple[Tensor, ...], here: str) -> tuple[nn.Module, Sequence[Tensor]]:
        """Builds the neck and runs it on the student's maps."""
        widths = [x.shape[1] for x in maps]
        defaults = dict(in_channels=widths, channels=widths[0], num_levels=len(maps))
        neck = build_module(self._neck, f'{here}: neck', defaults)
        try:
            with torch.no_grad():
                neck.eval()
                refined = neck(maps)
                [x.shape[1] for x in refined]  # it gives one map or several
                return neck, refined
        except Exception as error:  # whatever is no neck makes of these maps
            shapes = ', '.join(str(tuple(x.shape)) for x in maps)
            raise ValueError(
                f"{here}: {type(neck).__name__} does not take what '{self.tap}' gives (in a trial: "
                f'{shapes}): {error}'
            ) from error

    def _try(
        self,
        maps: tuple[Tensor, ...],
        samples: list | None,
        taps: Sequence[Tap],
        levels: int,
        here: str,
    ) -> DryRun:
        """Runs a training forward of a copy and counts its multiply-adds."""
        trial = copy.deepcopy(self.model).eval()
        counter = FlopCounterMode(display=False)

        def forward() -> None:
            with counter:  # starts from 0: `@pre_relu` taps need two forwards
                trial(maps, samples, mode='loss')

        try:
            run = read_once(trial, taps, forward)
        except Exception as error:  # a head may raise anything at these maps
            raise ValueError(
                f'{here}: its heads do not work on the {levels} maps of its neck '
                f'({type(error).__name__}: {error}). Tap in the student what its own heads read, '
                'or change them with `head`'
            ) from error
        check_ran(self.model, run, taps, here)
        self.costs = _costs(self.model, counter)
        return run

    def _config(self, student: dict, widths: list[int], here: str) -> ConfigDict:
        """Returns the student's config without its backbone, with heads for these widths."""
        config = Config(dict(model=without_pretraining(student))).model
        config.pop('auxiliary_head', None)
        config.backbone = dict(type='mmkd_plugin.StudentMaps')
        if _is_classifier(config):
            config.head = _merged(config.head, self._head)
            if 'in_channels' in config.head:
                config.head.in_channels = widths[-1]
            return config
        config.neck = None
        if 'decode_head' in config:
            config.decode_head = _merged(config.decode_head, self._head)
            heads = config.decode_head
            for head in heads if isinstance(heads, (list, tuple)) else [heads]:
                head.in_channels = _picked(widths, head.get('in_index', -1), here)
            return config
        if 'bbox_head' in config:
            config.bbox_head = _merged(config.bbox_head, self._head)
        if len(set(widths)) > 1:
            raise ValueError(
                f"{here}: a detector's heads read levels of one width, and its neck gives {widths} "
                "channels; add out_channels=256 to `neck`, or tap the student's own 'neck'"
            )
        roi = config.get('roi_head') or {}
        for part in (config.get('bbox_head'), config.get('rpn_head'), roi.get('bbox_head')):
            if isinstance(part, dict) and 'in_channels' in part:
                part.in_channels = widths[0]
        if 'bbox_roi_extractor' in roi:
            roi.bbox_roi_extractor.out_channels = widths[0]
        return config

    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Runs the network and its task loss on the student's maps, with gradient.

        Args:
            batch (Batch): The batch, with the student's maps.
            views (Sequence[View]): Some of the views given to :meth:`prepare`.

        Returns:
            Lesson: The maps of these views, and the losses, named ``<name>.<loss>``.
        """
        run, maps, taps = self._run, self.tap.of(batch.student), taps_of(views)
        with TapReader(self.model, taps, run.in_place, places=run.places) as reader:
            losses = self.model(tuple(as_list(maps)), batch.data_samples, mode='loss')
        named = {f'{self.name}.{key}': value for key, value in losses.items()}
        read = {tap: reader.read(tap) for tap in taps}
        shown = {view: view.of(read) for view in of_kind(views)}
        return Lesson(shown, losses=scaled_losses(named, self.loss_weight))

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, nn.Module | None]]:
        """Returns the batch norms that feed the maps of taps; see :meth:`Teacher.norms`."""
        if names is None:
            names = [name for tap in taps for name in self._run.norms[tap]]
        owner = f"self-teacher '{self.name}'"
        return [(n, find_module(self.model, Tap(n), owner) if n else None) for n in names]

    def classes(self, tap: Tap) -> int | None:
        """Returns the number of classes of the head around a tap, None if it is not known."""
        return classes_around(self.model, tap)

    def init_weights(self) -> None:
        """Initialises its neck and heads."""
        self.model.init_weights()

    def work(self) -> str:
        """Describes the network and its cost in training, in a line of the plan."""
        counted = any(cost.endswith(' G') for cost in self.costs)
        image = f' (multiply-adds for an image of {self._size}×{self._size})' if counted else ''
        return (
            f"self-teacher '{self.name}' on '{self.tap}' of the student, trained along and gone at "
            f'inference: {"; ".join(self.costs)}{image}'
        )


def _is_classifier(config: dict) -> bool:
    """Whether a model has one head, which reads what its neck has pooled."""
    return config.get('head') is not None


def _merged(head: Any, changes: dict) -> Any:
    """Returns a head's config with changes; of a head of another type only the task is kept."""
    if isinstance(head, (list, tuple)):
        return [_merged(one, changes) for one in head]
    if 'type' in changes and type_name(changes['type']) != type_name(head.type):
        losses = ('loss', 'loss_decode', 'loss_cls', 'loss_bbox')
        kept = ('num_classes', 'in_index', 'align_corners', *losses)
        head = ConfigDict({key: head[key] for key in kept if key in head})
    config = Config(dict(head=head))
    config.merge_from_dict(dict(head=changes))
    return config.head


def _picked(widths: list[int], index: Any, here: str) -> Any:
    """Returns the channels of the maps that a decode head reads."""
    several = isinstance(index, (list, tuple))
    for position in index if several else [index]:
        if not -len(widths) <= position < len(widths):
            raise ValueError(
                f"{here}: the student's decode head reads map {position}, and the neck of the "
                f'self-teacher gives {len(widths)}; add head=dict(in_index=...), or tap what the '
                "student's head reads"
            )
    return [widths[i] for i in index] if several else widths[index]


def _costs(model: nn.Module, counter: FlopCounterMode) -> list[str]:
    """Returns a text on the parameters and multiply-adds of each part of a model."""
    # The counter names a module by the class of the model and the path. A part whose methods are
    # called, instead of the module itself, has no entry. So the innermost entries are added up.
    # Before torch 2.4 there are no entries but that of the whole: then no part has a number.
    counted = {
        name.partition('.')[2]: sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
    }
    inner = {
        path: flops
        for path, flops in counted.items()
        if path and not any(other.startswith(f'{path}.') for other in counted)
    }
    texts = []
    for name, part in model.named_children():
        millions = sum(p.numel() for p in part.parameters()) / 1e6
        if millions:
            giga = sum(f for path, f in inner.items() if f'{path}.'.startswith(f'{name}.')) / 2e9
            work = f', {giga:.3f} G' if inner else ''
            texts.append(f'{name} ({type(part).__name__}) {millions:.2f} M parameters{work}')
    return texts
