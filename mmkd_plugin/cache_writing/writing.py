"""Writing: runs the teacher of a config, and stores its maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS
from rich.console import Console

from mmkd_plugin.cache import projections
from mmkd_plugin.cache.costs import Cost
from mmkd_plugin.cache.drawn import preprocessor_of
from mmkd_plugin.cache.projections import Principal, project, projection
from mmkd_plugin.cache.records import OF_SCORES, Record, unpack
from mmkd_plugin.cache.sizes import check_space, stored_size
from mmkd_plugin.cache.store import CacheWriter, human_size, pack, record_key
from mmkd_plugin.cache_writing.contents import set_channels, set_tau, set_top_k, terms_of
from mmkd_plugin.cache_writing.settings import Settings
from mmkd_plugin.cache_writing.sources import Drawn, Pictures, Whole, lost_in_whole_images
from mmkd_plugin.cli import progress_bar
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.base import Trial
from mmkd_plugin.teachers.cached import stored_as
from mmkd_plugin.teachers.caching import description, padding_values
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.terms.term import Term
from mmkd_plugin.views import of_kind

AS_BUILT = dict(precision='fp32', channels_last=False, fuse_conv_bn=False)
"""Exact rather than fast: the teacher runs once, and every epoch reads what it gave."""

#: Number of images from which the size of the cache is estimated, and of those from which
#: projections are learnt.
TRIED, LEARNT = 8, 16

#: The matrices of the maps of a tap; None for a map that keeps its channels.
Matrices = list[np.ndarray | None]


class Writing:
    """A cache that is written: its teacher, its images, and its description.

    Args:
        cfg (Config): A distilled config, complete.
        config (dict): The dict of its teacher, as one that runs.
        settings (Settings): How the cache is written.

    Raises:
        ValueError: If the teacher cannot be cached for this config.
    """

    def __init__(self, cfg: Config, config: dict[str, Any], settings: Settings) -> None:
        lost = lost_in_whole_images(cfg)
        with_views = settings.views is not None and bool(lost)
        terms = terms_of(cfg, config['name'], warped=not with_views)
        views = [term.teacher_view for term in terms]
        explaining = {stored_as(view): view for view in of_kind(views, 'explanations')}
        self.views = [*of_kind(views, 'maps'), *explaining.values()]  # each explanation once
        self.source = Drawn(cfg, settings) if with_views else Whole(cfg, settings, lost)
        self.settings = settings

        device = torch.device(get_device())
        self.preprocessor = MODELS.build(preprocessor_of(cfg)).to(device)
        self.teacher = OnlineTeacher(**{'inference': AS_BUILT, **config})
        trial = Trial(None, self.preprocessor, DryRun())
        preview = self.teacher.prepare(trial, self.views, device)
        self.teacher.model.to(device)
        norms = [name for term in terms for name in term.norm_names or ()]
        told = description(self.teacher, config, preview, self.views, norms)
        self.meta = dict(told, **self.source.meta, dtype=settings.dtype, top_k=settings.top_k)
        fills = padding_values(self.teacher, self.preprocessor, self.views, preview.size)
        for name, values in fills.items():
            self.meta['taps'][name]['fill'] = values
        self._describe(terms)

    def _describe(self, terms: Sequence[Term]) -> None:
        """Adds to the description what is stored of each tap."""
        about, settings = self.meta['taps'], self.settings
        set_top_k(about, terms, settings.top_k)
        if settings.dtype in OF_SCORES:
            set_tau(about, terms)
            taus = {name: one['tau'] for name, one in about.items()}
            self.meta['tau'] = {name: tau for name, tau in taus.items() if tau is not None}
        self.shown = {name: dict(one) for name, one in about.items()}  # channels not mixed
        self.learns = settings.channels is not None and settings.projection == 'learnt'
        self.matrices: dict[str, Matrices] = {}
        if settings.channels is not None:
            set_channels(about, terms, settings.channels)
            self.meta['channels'] = settings.channels
        if self.learns:
            self.meta['projection'] = 'learnt'
        else:
            self.matrices = random_matrices(about)
            mix_fills(about, self.matrices)

    def write(self) -> None:
        """Runs the teacher on what is missing.

        Raises:
            ValueError: If there is another cache, an image cannot be loaded, or the disk is full.
        """
        about, path = self.meta['taps'], self.settings.out
        with CacheWriter(path, self.meta) as writer:
            left = self.source.missing(writer, about)
            print(
                f"teacher '{self.teacher.name}' ({self.teacher.source}): {', '.join(about)}; "
                f'{self.source.told(len(left))} in {path} already'
            )
            for line in self.source.reasons:
                print(line)
            for line in self.source.warnings:
                print_log(line, logger='current', level=logging.WARNING)
            if not left:
                writer.finish()
                return
            writer.reopen()
            if self.learns:
                self._learn(writer, left)
            left, costs = spread(left, TRIED), Costs(self.meta, self.matrices)
            store(writer, self._pictures(left), len(left), self.source.what, costs)
            writer.finish()
        print(f'{path}: {human_size(Path(path, "data.mdb").stat().st_size)}')

    def _pictures(self, images: Sequence[Any]) -> Iterator[Pictures]:
        return self.source.run(images, self.teacher, self.preprocessor, self.views, self.shown)

    def _learn(self, writer: CacheWriter, left: Sequence[Any]) -> None:
        """Learns the matrices of a new cache, or takes those of one that was begun before."""
        about = self.meta['taps']
        self.matrices = stored_matrices(writer, about)
        if not self.matrices:
            first = spread(left, LEARNT)[:LEARNT]
            self.matrices = learnt_matrices(about, self._pictures(first))
            mix_fills(about, self.matrices)
            writer.describe(self.meta, {projections.KEY: matrices_as_bytes(self.matrices)})


def write_cache(cfg: Config, config: dict[str, Any], settings: Settings) -> None:
    """Writes a cache, or goes on with one; see :class:`Writing`."""
    Writing(cfg, config, settings).write()


# Mixtures of channels -----------------------------------------------------------------------------


def mixed_maps(about: Mapping[str, Mapping]) -> Iterator[tuple[str, int, int, int]]:
    """Yields the maps whose channels are mixed: tap, number, channels before and after."""
    for tap, one in sorted(about.items()):
        for number, (before, after) in enumerate(zip(one.get('unmixed', ()), one['maps'])):
            if before[0] > after[0]:
                yield tap, number, before[0], after[0]


def arranged(about: Mapping[str, Mapping], found: Iterable[np.ndarray]) -> dict[str, Matrices]:
    """Sorts matrices, in the order of :func:`mixed_maps`, by their tap."""
    matrices: dict[str, Matrices] = {
        tap: [None] * len(one['maps']) for tap, one in about.items() if 'unmixed' in one
    }
    for (tap, number, *_), matrix in zip(mixed_maps(about), found, strict=True):
        matrices[tap][number] = matrix
    return matrices


def random_matrices(about: Mapping[str, Mapping]) -> dict[str, Matrices]:
    """The fixed random matrices, by tap."""
    return arranged(about, [projection(*counts) for _, _, *counts in mixed_maps(about)])


def learnt_matrices(
    about: Mapping[str, Mapping], pictures: Iterable[Pictures]
) -> dict[str, Matrices]:
    """Learns matrices from what the teacher shows of a few images."""
    learning = {(tap, number): Principal(before) for tap, number, before, _ in mixed_maps(about)}
    for _, seen in pictures:
        for _, records in seen:
            for (tap, number), one in learning.items():
                one.add(records[tap].maps[number])
    kept = [after for *_, after in mixed_maps(about)]
    return arranged(about, [one.matrix(count) for one, count in zip(learning.values(), kept)])


def stored_matrices(writer: CacheWriter, about: Mapping[str, Mapping]) -> dict[str, Matrices]:
    """The learnt matrices of a cache that was begun before; none of a new one."""
    data = writer.noted(projections.KEY)
    return {} if data is None else arranged(about, projections.from_bytes(data))


def matrices_as_bytes(matrices: Mapping[str, Matrices]) -> bytes:
    """Writes them in their order."""
    return projections.to_bytes(
        one for each in matrices.values() for one in each if one is not None
    )


def mix_fills(about: Mapping[str, dict], matrices: Mapping[str, Matrices]) -> None:
    """Mixes the values in padding as the maps."""
    for tap, each in matrices.items():
        fills = (np.array(fill) for fill in about[tap]['fill'])
        about[tap]['fill'] = [project(*pair).tolist() for pair in zip(fills, each)]


# Packing ------------------------------------------------------------------------------------------


class Costs:
    """Packs records, and measures on the first ones what that costs.

    Args:
        meta (dict): Metadata of the cache.
        matrices (dict): Those that mix channels, see :func:`mixtures`.
    """

    def __init__(self, meta: dict[str, Any], matrices: Mapping[str, Matrices]) -> None:
        self.dtype, self.about, self.matrices = meta['dtype'], meta['taps'], matrices
        self.told = self.dtype != 'float16' or meta.get('channels') or meta['top_k']
        self.taps = {
            name: Cost(one.get('tau') or (1.0 if one['top_k'] else None), 'unmixed' in one)
            for name, one in meta['taps'].items()
        }

    def pack(
        self, image: str, records: dict[str, Record], called: Callable[[str], str]
    ) -> dict[str, bytes]:
        """Packs the records of an image or a view."""
        packed = {}
        for tap, record in records.items():
            about, key, exact = self.about[tap], record_key(image, called(tap)), record.maps
            if tap in self.matrices:
                record = replace(record, maps=[*map(project, exact, self.matrices[tap])])
            data = pack(record, key, self.dtype, about['top_k'], about.get('tau'))
            cost = self.taps[tap]
            if self.told and len(cost.stored) < TRIED:
                cost.add(exact, unpack(data, key).maps, len(data))
            packed[called(tap)] = data
        return packed

    def lines(self) -> Iterator[str]:
        """A line on each tap."""
        for tap, cost in self.taps.items():
            if self.told:
                yield f'{tap}: {cost.text()}'


def spread(images: Sequence[Any], count: int) -> list[Any]:
    """Returns the same images, some from all over the list first: they give the estimate."""
    step = max(len(images) // count, 1)
    first = list(images[::step][:count])
    others = set(first)
    return first + [image for image in images if image not in others]


def store(
    writer: CacheWriter,
    pictures: Iterable[Pictures],
    total: int,
    what: str,
    costs: Costs,
) -> None:
    """Writes records as they come, once an estimate has shown that the disk has room for all."""
    console = Console()
    with progress_bar(console) as progress:
        bar = progress.add_task(what, total=total)
        waiting: list[tuple[str, dict[str, bytes]]] | None = []
        for name, seen in pictures:
            packed: dict[str, bytes] = {}
            for called, records in seen:
                packed |= costs.pack(name, records, called)
            if waiting is None:
                writer.write(name, packed)
            else:
                waiting.append((name, packed))
                if len(waiting) == min(TRIED, total):
                    mean = sum(stored_size(one) for _, one in waiting) / len(waiting)
                    console.print(check_space(writer.path, int(mean * total), total, what))
                    for line in costs.lines():
                        console.print(line, highlight=False, soft_wrap=True)
                    for one in waiting:
                        writer.write(*one)
                    waiting = None
            progress.advance(bar)
