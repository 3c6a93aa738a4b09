"""CachedTeacher: a teacher that ran before, whose maps are read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.cache.loading import field_of, map_key
from mmkd_plugin.cache.store import TeacherCache, check_stored, human_size
from mmkd_plugin.cache.wiring import WIRING
from mmkd_plugin.explanations import Chosen, Explanation, Scores, resized
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.taps.example import EXAMPLE_SIZES
from mmkd_plugin.teachers.model import checkpoint_hash, config_hash
from mmkd_plugin.terms.term import Term


@MODELS.register_module()
class CachedTeacher:
    """A teacher whose maps ``tools/cache_teacher.py`` stored: it takes no memory and does not run.

    It stands in for a :class:`Teacher` in a config. The workers of the data loader read the maps
    and do to them what the pipeline did to the image (:class:`LoadTeacherMaps`, which :func:`wire`
    adds); here they are put together for the batch.

    Args:
        path (str): The cache.
        config (str | dict, optional): That of the teacher; the cache has to be of it. Defaults to
            None: not checked.
        checkpoint (str, optional): That of the teacher; the cache has to be of it. Defaults to
            None: not checked.
        strict (bool): As of a :class:`Teacher`, so that the same dict does for both; not used.
        inference (dict, optional): The same. Defaults to None.
        ignore (Sequence[str]): Types of transforms of your own in the train pipeline that leave
            each pixel in its place. Defaults to ``()``.
        name (str): What terms and messages call it. Defaults to ``'teacher'``.

    Raises:
        ValueError: If there is no such cache, it is not finished, or it is of another teacher.
    """

    #: Whether its maps lie in a store and come with the batch.
    stored: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        config: str | dict | None = None,
        checkpoint: str | None = None,
        strict: bool = True,
        inference: dict | None = None,
        ignore: Sequence[str] = (),
        name: str = 'teacher',
    ) -> None:
        self.name = name
        self.cache = TeacherCache(path)
        meta = self.cache.meta
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

    def prepare(
        self,
        preprocessor: nn.Module,
        taps: Sequence[Tap],
        device: torch.device,
        size: int = EXAMPLE_SIZES[0],
        gradient_taps: Sequence[Tap] = (),
    ) -> DryRun:
        """Checks that it has the maps of ``taps``; see :meth:`Teacher.prepare`.

        Returns:
            DryRun: Made-up maps of the right shapes.

        Raises:
            ValueError: If it has not, if gradients are asked for, or the preprocessor mixes images.
        """
        owner = f"teacher '{self.name}'"
        if gradient_taps:
            raise ValueError(
                f'{owner} is a cache, and {", ".join(map(str, gradient_taps))} is asked for the '
                'gradient of its task loss, which needs the teacher itself: give `config` and '
                '`checkpoint` without `type`'
            )
        check_stored(self.cache, list(map(str, taps)), owner)
        for augment in _batch_augments(preprocessor):
            if type(augment).__name__ != 'BatchFixedSizePad':
                raise ValueError(
                    f'{owner} is a cache, and {type(augment).__name__} in `batch_augments` changes '
                    'images after their maps were read; take it out, or train with the teacher '
                    'itself'
                )
        values: dict[Tap, Maps] = {}
        for tap in taps:
            about = self.cache.meta['taps'][str(tap)]
            maps = [_made_up(one, size) for one in about['maps']]
            values[tap] = maps if about['several'] else maps[0]
        return DryRun(values=values, size=size)

    def prepare_explanations(self, terms: Sequence[Term], run: DryRun) -> None:
        """Checks that it has the explanations that terms compare.

        Args:
            terms (Sequence[Term]): The terms that learn from it.
            run (DryRun): What :meth:`prepare` gave; made-up maps that explain are added to it.

        Raises:
            ValueError: If it has not.
        """
        for term in terms:
            if term.explainer is not None:
                name = term.explainer.stored_as(term.teacher_tap)
                check_stored(self.cache, [name], f"teacher '{self.name}'")
                features = iter(self.cache.meta['taps'][name]['features'])
                for tap, count in zip(term.teacher_tap, self.cache.meta['taps'][name]['counts']):
                    maps = [_made_up(next(features), run.size) for _ in range(count or 1)]
                    run.values[tap] = maps if count else maps[0]

    def example_of(self, term: Term) -> tuple[Scores, list[Tensor]]:
        """The kind of its class scores, and a corner of made-up explanations for a term."""
        about = self.cache.meta['taps'][term.explainer.stored_as(term.teacher_tap)]
        kind = Scores(*about['scores'])
        maps = [torch.rand(1, channels // kind.classes, 8, 8) for channels, *_ in about['maps']]
        return kind, maps

    def explanation(
        self, inputs: Tensor, data_samples: list, term: Term, chosen: Chosen
    ) -> Explanation:
        """The stored explanations of the chosen classes, cut out as the images were.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``.
            data_samples (list): Their data samples, which carry the explanations.
            term (Term): What compares them.
            chosen (Chosen): The classes.
        """
        name = term.explainer.stored_as(term.teacher_tap)
        classes = chosen.classes.clamp(min=0)[:, :, None, None, None]
        maps = []
        for x in self._carried(name, inputs, data_samples):
            x = x.unflatten(1, (term.score_kind.classes, -1))
            picked = x.gather(1, classes.expand(-1, -1, *x.shape[2:]))
            maps.append(resized(picked, inputs.shape[2:]))
        return Explanation(chosen, maps)

    def __call__(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """Puts together what the data samples carry; see :meth:`Teacher.__call__`.

        Raises:
            ValueError: If they carry nothing.
        """
        values: dict[Tap, Maps] = {}
        for tap in taps:
            maps = self._carried(str(tap), inputs, data_samples)
            values[tap] = maps if self.cache.meta['taps'][str(tap)]['several'] else maps[0]
        return values

    def _carried(self, name: str, inputs: Tensor, data_samples: list | None) -> list[Tensor]:
        """The maps of a tap that data samples carry, on the canvas of the batch."""
        field = field_of(self.name)
        if not data_samples or any(field not in sample for sample in data_samples):
            raise ValueError(
                f"teacher '{self.name}' is a cache, and the batch carries no maps of it: {WIRING}"
            )
        carried = [sample.get(field) for sample in data_samples]
        about, maps = self.cache.meta['taps'][name], []
        for number, ((_, *strides), fill) in enumerate(zip(about['maps'], about['fill'])):
            size = [-(-side // stride) for side, stride in zip(inputs.shape[2:], strides)]
            out = torch.tensor(fill, device=inputs.device).view(1, -1, 1, 1)
            out = out.repeat(len(inputs), 1, *size)
            for one, element in zip(out, carried):
                found = element.get(map_key(name, number))
                one[:, : found.shape[1], : found.shape[2]] = found
            maps.append(out)
        return maps

    def classes(self, tap: Tap) -> int | None:
        """The number of classes of the teacher's head around a tap, None if there is none."""
        return self.cache.meta['taps'][str(tap)]['classes']

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, SimpleNamespace | None]]:
        """Weight and bias of the batch norms that feed maps; see :meth:`Teacher.norms`.

        Raises:
            ValueError: If one that is named is not in the cache.
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

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Has no tensors; see :meth:`Teacher.apply_to_tensors`."""

    def __deepcopy__(self, memo: dict) -> CachedTeacher:
        """A copy of the student shares it."""
        return self

    def work(self, taps: Sequence[Tap]) -> str:
        """What it does for these taps, in words."""
        size = human_size(Path(self.cache.path, 'data.mdb').stat().st_size)
        return f'cached in {self.cache.path} ({size}), not in memory; reads {_listed(taps)}'


def _listed(taps: Sequence[Tap]) -> str:
    return ', '.join(map(str, taps))


def _norm(values: Sequence[Sequence[float]]) -> SimpleNamespace:
    weight, bias = map(torch.tensor, values)
    return SimpleNamespace(weight=weight, bias=bias)


def _batch_augments(preprocessor: nn.Module) -> list:
    """What a data preprocessor does to whole batches."""
    augments = getattr(preprocessor, 'batch_augments', None) or ()
    augments = getattr(augments, 'augments', augments)  # our own, which holds several
    return list(augments) if isinstance(augments, (Sequence, nn.ModuleList)) else [augments]


def _made_up(about: Sequence[int], size: int) -> Tensor:
    """A map of channels and strides ``[C, h, w]`` for an image of ``size`` pixels."""
    channels, *strides = about
    return torch.randn(1, channels, *(-(-size // stride) for stride in strides))
