"""Sources: the images on which a teacher runs for a cache, whole or as the pipeline draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkd_plugin.cache.drawn import (
    DrawnViews,
    digest_of,
    drawn_from,
    innermost,
    parts_drawn,
)
from mmkd_plugin.cache.images import (
    ScaledImages,
    common_root,
    images_of,
    kind_of,
    leaves,
    loading_part,
    mirrors,
    plain,
    scales_at_random,
    training_scale,
)
from mmkd_plugin.cache.recording import (
    FOLLOWED,
    IGNORED,
    REFUSED,
    REPLAYED,
    WRAPPERS,
    not_followed,
    record_training,
    train_pipelines,
)
from mmkd_plugin.cache.records import Record
from mmkd_plugin.cache.store import CacheWriter, mirrored, of_view, record_names
from mmkd_plugin.cache.wiring import is_cached
from mmkd_plugin.cache_writing.settings import Settings
from mmkd_plugin.cli import UsageError
from mmkd_plugin.teachers.caching import drawn_pictures, whole_picture
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.training_data import CheckedPipeline, Expected, dataset_errors_named
from mmkd_plugin.views import View, of_kind

#: The name of an image, and what the teacher shows of it: records by their tap, and what makes the
#: name in the store of the name of a tap.
Pictures = tuple[str, list[tuple[Callable[[str], str], dict[str, Record]]]]


def lost_in_whole_images(cfg: Config) -> list[str]:
    """Returns the transforms of the train pipelines that maps of whole images do not follow."""
    more = cfg.model.get('unlabelled')
    beside = [] if more is None or more.get('only') else [more.dataset]
    parts = [cfg.train_dataloader.dataset, *beside]
    steps = [step for part in parts for one in pipelines_of(part) for step in one]
    return not_followed(steps)


class Whole:
    """Each image whole, at the scale of the train pipeline, and mirrored.

    Args:
        cfg (Config): The config.
        settings (Settings): How the cache is written.
        lost (Sequence[str]): The transforms that the maps do not follow.
    """

    what = 'images'

    def __init__(self, cfg: Config, settings: Settings, lost: Sequence[str]) -> None:
        try:
            holders = [holder for holder, key, _ in train_pipelines(cfg) if key == 'pipeline']
            loading, scale = image_settings(holders, settings.scale)
            record_training(Config(cfg.to_dict()), ignored(cfg))  # refuses what it cannot replay
        except ValueError as error:
            raise UsageError(f'{error}. Or store views of it: --views 8') from error
        self.images = training_images(cfg, common_root(holders))
        self.loading, self.scale, self.workers = loading, scale, settings.workers
        self.meta = dict(
            loading=plain(loading),
            scale=plain(scale),
            scale_given=settings.scale is not None,
            mirrored=any(mirrors(holder['pipeline']) for holder in holders)
            if settings.mirrored is None
            else settings.mirrored,
        )
        self.reasons, self.warnings = [], []
        if lost:
            told = 'the maps are those of whole images, which do not show what '
            told += f'{", ".join(lost)} {"does" if len(lost) == 1 else "do"} to them'
            if any(scales_at_random(holder['pipeline']) for holder in holders):
                told = (
                    'the train pipeline scales images at random, and the maps are those at one '
                    'scale: students learn less from them, see docs/cached_teacher.md, "Trained '
                    'with both"'
                )
            self.warnings = [f'{told}; --views 8 with another --out stores maps that do']
        elif settings.views is not None:
            self.reasons = [
                'whole images and no views: the train pipeline shows each image whole at one '
                "scale, so these maps are the teacher's own in each epoch"
            ]

    def missing(self, writer: CacheWriter, about: dict[str, Any]) -> list[str]:
        """Lists the images that are not stored yet."""
        return writer.missing(self.images, record_names(dict(self.meta, taps=about)))

    def told(self, left: int) -> str:
        """How many images there are, and how many of them are done."""
        mirrored = ' and their mirror images' if self.meta['mirrored'] else ''
        return f'{len(self.images)} images{mirrored}, {len(self.images) - left} of them'

    def run(
        self,
        left: Sequence[str],
        teacher: OnlineTeacher,
        preprocessor: nn.Module,
        views: Sequence[View],
        about: Mapping[str, Any],
    ) -> Iterator[Pictures]:
        """Runs the teacher on some of what is missing."""
        dataset = ScaledImages([self.images[name] for name in left], self.loading, self.scale)
        dataset.load = [CheckedPipeline(dataset.load, Expected(), packs=False)]
        if dataset.scale is not None:
            dataset.scale = CheckedPipeline([dataset.scale], Expected(), packs=False)
        loader = DataLoader(dataset, batch_size=None, num_workers=self.workers)
        images: Iterator[tuple[Tensor, tuple[int, int]]] = iter(loader)
        for name in left:
            seen = []
            try:
                image, loaded = next(images)
                for called in (str, mirrored) if self.meta['mirrored'] else (str,):
                    shown = image.flip(2) if called is mirrored else image
                    records = whole_picture(teacher, preprocessor, shown, loaded, about, views)
                    seen.append((called, records))
            except UsageError:
                raise
            except ValueError as error:
                raise UsageError(f'{name}: {error}') from error
            yield name, seen


class Drawn:
    """Views: each image as the train pipeline draws it, several times.

    Args:
        cfg (Config): The config.
        settings (Settings): How the cache is written.
    """

    what = 'views'

    def __init__(self, cfg: Config, settings: Settings) -> None:
        drawn, names = drawn_from(cfg), []
        self.places: dict[str, tuple[DrawnViews, int]] = {}
        for config, part in zip(parts_drawn(cfg).values(), drawn_parts(cfg)):
            for leaf in leaves(part):
                if hasattr(leaf, 'pipeline'):
                    steps = leaf.pipeline.transforms
                    leaf.pipeline = CheckedPipeline(steps, Expected(), packs=False)
            self._check_draws(config, part)
            names += part.names()
            for index, name in enumerate(part.names()):
                self.places.setdefault(name, (part, index))
        self.views, self.workers = settings.views, settings.workers
        self.batch_size = cfg.train_dataloader.get('batch_size') or 1
        self.meta = dict(drawn=dict(drawn, images=digest_of(names)), views=settings.views)
        self.reasons, self.warnings = [], []

    def _check_draws(self, config: dict, part: DrawnViews) -> None:
        """Refuses pipelines that draw another image from the same seed."""
        if not len(part):
            raise UsageError(f'{"unlabelled" if part.prefix else "the training set"} has no images')
        size = len(part)
        first, _, again = (part[index] for index in (0, 2 * size - 1, 0))
        if not isinstance(first, dict) or not {'inputs', 'data_samples'} <= set(first):
            raise UsageError(
                'the train pipeline gives no `inputs` and `data_samples`; its last step packs '
                'them, such as PackSegInputs or PackDetInputs'
            )
        if not torch.equal(first['inputs'], again['inputs']):
            known = {*FOLLOWED, *IGNORED, *REFUSED, *REPLAYED, *WRAPPERS}
            steps = [step for one in pipelines_of(config) for step in one]
            own = [kind for kind in dict.fromkeys(map(kind_of, steps)) if kind not in known]
            raise UsageError(
                'the train pipeline draws another image from the same seed, so its views cannot be '
                'drawn again in training. A transform keeps something from image to image, or has '
                f'random numbers of its own: {", ".join(own) or "which one is not known"}'
            )

    def missing(self, writer: CacheWriter, about: dict[str, Any]) -> list[tuple[str, int]]:
        """Lists the views that are not stored yet, by image and number."""
        return [
            (name, view)
            for view in range(self.views)
            for name in writer.missing(self.places, [of_view(tap, view) for tap in about])
        ]

    def told(self, left: int) -> str:
        """How many views there are, and how many of them are done."""
        total = self.views * len(self.places)
        return f'{self.views} views of {len(self.places)} images, {total - left} of {total}'

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, number: int) -> dict:
        name, view = self.left[number]
        part, index = self.places[name]
        return part[index + view * len(part)]

    def run(
        self,
        left: Sequence[tuple[str, int]],
        teacher: OnlineTeacher,
        preprocessor: nn.Module,
        views: Sequence[View],
        about: Mapping[str, Any],
    ) -> Iterator[Pictures]:
        """Runs the teacher on some of what is missing."""
        self.left = list(left)
        size = 1 if of_kind(views, 'explanations') else self.batch_size
        loader = DataLoader(self, batch_size=size, num_workers=self.workers, collate_fn=list)
        jobs = iter(self.left)
        for items in loader:
            batch = [(*next(jobs), item) for item in items]
            for shape in dict.fromkeys(item['inputs'].shape for item in items):
                same = [one for one in batch if one[2]['inputs'].shape == shape]
                try:
                    found = drawn_pictures(
                        teacher, preprocessor, [item for *_, item in same], about, views
                    )
                except ValueError as error:
                    raise UsageError(f'{same[0][0]}: {error}') from error
                for (name, view, _), records in zip(same, found):
                    yield name, [(partial(of_view, number=view), records)]


def drawn_parts(cfg: Config) -> Iterator[DrawnViews]:
    """Builds the data sets whose views are drawn: that of the training, and without labels."""
    for prefix, config in parts_drawn(cfg).items():
        key, named = ('unlabelled', config) if prefix else ('train', cfg.train_dataloader)
        with dataset_errors_named(key, named):
            part = DrawnViews(
                DATASETS.build(config), root=common_root([*innermost(config)]), prefix=prefix
            )
            for leaf in leaves(part):
                leaf.full_init()
        yield part


def pipelines_of(dataset: dict) -> Iterator[Sequence[dict]]:
    """Yields the pipelines of a data set and of those inside it."""
    yield dataset.get('pipeline') or ()
    for one in [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', ()):
        yield from pipelines_of(one)


def image_settings(
    holders: Sequence[dict], given: tuple[int, int] | None
) -> tuple[list[dict], dict | None]:
    """Returns how the train pipelines load images, and the scale to which they bring them."""
    loading = [loading_part(holder['pipeline']) for holder in holders]
    if any(plain(one) != plain(loading[0]) for one in loading):
        raise UsageError('the train pipelines of the data sets load images in different ways')
    if given is None:
        scales = [training_scale(holder['pipeline']) for holder in holders]
        if any(plain(one) != plain(scales[0]) for one in scales):
            raise UsageError(
                'the train pipelines of the data sets have different scales; give one: '
                '--scale WIDTH,HEIGHT'
            )
        return loading[0], scales[0]
    return loading[0], dict(type='Resize', scale=given, keep_ratio=True)


def places_of(cfg: Config) -> Iterator[dict]:
    """Yields the data sets that have files: those of the training, and without labels beside it."""
    yield from innermost(cfg.train_dataloader.dataset)
    more = cfg.model.get('unlabelled')
    if more is not None and not more.get('only'):
        yield from innermost(more.dataset)


def training_images(cfg: Config, root: str) -> dict[str, tuple[Any, int]]:
    """Returns the images of the training set, and those without labels beside it."""
    with dataset_errors_named('train', cfg.train_dataloader):
        images = images_of(DATASETS.build(cfg.train_dataloader.dataset), root)
    more = cfg.model.get('unlabelled')
    if more is not None and not more.get('only'):
        with dataset_errors_named('unlabelled', more.dataset):
            images = {**images_of(DATASETS.build(more.dataset), root), **images}
    if not images:
        raise UsageError('the training set has no images')
    return images


def ignored(cfg: Config) -> list[str]:
    """Returns the names of transforms that leave each pixel in its place, as the config says."""
    teachers = cfg.model.teacher
    teachers = [teachers] if isinstance(teachers, dict) else teachers
    return [name for one in teachers if is_cached(one) for name in one.get('ignore', ())]
