"""SelfTeacher: a teacher that is trained along, on the student's own maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkd_plugin.building import build_module
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, Tap, TapReader, Taps, as_list, find_module
from mmkd_plugin.taps.dry_run import DryRun, never_ran, read_once
from mmkd_plugin.teachers.model import without_pretraining


@MODELS.register_module()
class StudentMaps(BaseModule):
    """Takes the place of a backbone: hands on the maps that it is given.

    Examples:
        >>> import torch
        >>> maps = torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)
        >>> StudentMaps()(maps) is maps
        True
    """

    def forward(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns its argument."""
        return maps


class SelfTeacher(nn.Module):
    """A network on the student's maps that learns the student's task and teaches the student.

    It is a model of the student's own class, in which the student's maps take the place of a
    backbone, a neck refines them, and heads like the student's learn from the labels. So its taps
    have the student's names. Its task loss trains it and, through the maps, the student. What terms
    read from it is a target and gets no gradient. It is trained along, saved beside the student and
    gone at inference.

    Args:
        tap (str | list[str]): What it reads in the student.
        neck (dict): A module that takes a list of maps and returns one; ``in_channels``,
            ``channels`` and ``num_levels`` are filled in where it has them.
        head (dict, optional): What its heads have other than the student's: settings of
            ``decode_head`` for a segmentor, of ``bbox_head`` for a detector. Defaults to None.
        loss_weight (float): Factor on its task loss. Defaults to 1.0.
        name (str): What terms and messages call it. Defaults to ``'self_teacher'``.
    """

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
        self.tap = Taps.parse(tap)
        self.loss_weight = loss_weight
        self._neck = neck
        self._head = head or {}
        self._run: DryRun | None = None
        self.costs: list[str] = []

    def prepare(
        self, student: dict, maps: Maps, samples: list | None, taps: Sequence[Tap], sync: bool
    ) -> DryRun:
        """Builds it for what a dry forward of the student has shown, and tries it.

        Args:
            student (dict): The student's config.
            maps (Maps): What its tap gave.
            samples (list): The data samples of that forward.
            taps (Sequence[Tap]): All taps that will ever be read in it.
            sync (bool): Whether its batch norms work over all processes, as the student's do.

        Returns:
            DryRun: What the taps saw.

        Raises:
            ValueError: If it cannot be built or does not run on these maps.
        """
        here, maps = f"self-teacher '{self.name}'", tuple(as_list(maps))
        widths = [x.shape[1] for x in maps]
        defaults = dict(in_channels=widths, channels=widths[0], num_levels=len(maps))
        neck = build_module(self._neck, f'{here}: neck', defaults)
        try:
            with torch.no_grad():
                refined = neck.eval()(maps)
        except (ValueError, RuntimeError) as error:
            shapes = ', '.join(str(tuple(x.shape)) for x in maps)
            raise ValueError(
                f"{here}: {type(neck).__name__} does not take what '{self.tap}' gives (in a trial: "
                f'{shapes}). {error}'
            ) from error
        config = self._config(student, [x.shape[1] for x in refined], here)
        self.model = MODELS.build(config)
        self.model.neck = neck
        for tap in taps:
            find_module(self.model, tap, here)
        trial = copy.deepcopy(self.model).eval()
        counter = FlopCounterMode(display=False)

        def forward() -> None:
            with counter:  # counts afresh: for some taps there are two forwards
                trial(maps, samples, mode='loss')

        try:
            run = read_once(trial, taps, forward)
        except Exception as error:  # whatever a foreign head makes of these maps
            raise ValueError(
                f'{here}: its heads do not work on the {len(refined)} maps of its neck '
                f'({type(error).__name__}: {error}). Tap in the student what its own heads read, '
                'or change them with `head`'
            ) from error
        for tap in taps:
            if not run.calls[tap]:
                raise ValueError(never_ran(self.model, tap, run, here))
        self.costs = _costs(self.model, counter)
        if sync:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.train()
        self._run = run
        return run

    def _config(self, student: dict, widths: list[int], here: str) -> ConfigDict:
        """The student's config with our own neck, and heads for as many channels."""
        config = Config(dict(model=without_pretraining(student))).model
        config.pop('auxiliary_head', None)
        config.backbone, config.neck = dict(type='mmkd_plugin.StudentMaps'), None
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

    def forward(
        self, maps: Maps, data_samples: list, taps: Sequence[Tap]
    ) -> tuple[dict[str, Any], dict[Tap, Maps]]:
        """Its task losses, and what taps read while they were computed.

        Args:
            maps (Maps): The student's maps, with gradient.
            data_samples (list): The labels of the batch.
            taps (Sequence[Tap]): A part of those given to :meth:`prepare`.

        Returns:
            tuple: The losses, named ``<name>.<loss>``, and the maps of the taps.
        """
        run = self._run
        with TapReader(self.model, taps, run.in_place, places=run.places) as reader:
            losses = self.model(tuple(as_list(maps)), data_samples, mode='loss')
        named = {f'{self.name}.{key}': value for key, value in losses.items()}
        return named, {tap: reader.read(tap) for tap in taps}

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, nn.Module | None]]:
        """The batch norms that feed the maps of taps; see :meth:`Teacher.norms`."""
        if names is None:
            names = [name for tap in taps for name in self._run.norms[tap]]
        owner = f"self-teacher '{self.name}'"
        return [(n, find_module(self.model, Tap(n), owner) if n else None) for n in names]

    def init_weights(self) -> None:
        """Initialises its heads as the student's are."""
        self.model.init_weights()

    def work(self, size: int) -> str:
        """What it costs in training, in words.

        Args:
            size (int): Height and width of the image of the dry forward, pixels.
        """
        return (
            f"self-teacher '{self.name}' on '{self.tap}' of the student, trained along and gone at "
            f'inference: {"; ".join(self.costs)} (multiply-adds for an image of {size}×{size})'
        )


def _merged(head: Any, changes: dict) -> Any:
    """A head's config with changes; with another type, nothing of it but the task."""
    if isinstance(head, (list, tuple)):
        return [_merged(one, changes) for one in head]
    if 'type' in changes and changes['type'] != head.type:
        kept = ('num_classes', 'in_index', 'align_corners', 'loss_decode', 'loss_cls', 'loss_bbox')
        head = ConfigDict({key: head[key] for key in kept if key in head})
    config = Config(dict(head=head))
    config.merge_from_dict(dict(head=changes))
    return config.head


def _picked(widths: list[int], index: Any, here: str) -> Any:
    """The channels of the maps that a decode head picks."""
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
    """Parameters and multiply-adds of its parts."""
    # The counter names modules by the class of the outermost one and the path. A part whose methods
    # are called instead of the module has no entry of its own: the innermost ones are added up.
    counted = {
        name.partition('.')[2]: sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
    }
    inner = {
        path: flops
        for path, flops in counted.items()
        if not any(other.startswith(f'{path}.') for other in counted)
    }
    texts = []
    for name, part in model.named_children():
        millions = sum(p.numel() for p in part.parameters()) / 1e6
        if millions:
            giga = sum(f for path, f in inner.items() if f'{path}.'.startswith(f'{name}.')) / 2e9
            texts.append(
                f'{name} ({type(part).__name__}) {millions:.2f} M parameters, {giga:.3f} G'
            )
    return texts
