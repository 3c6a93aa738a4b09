"""Run the teacher of a config once on each training image and store what the student learns from.

CONFIG is a distilled config. Train with the same one and no teacher in memory:

    python tools/cache_teacher.py CONFIG --out PATH
    python tools/train.py CONFIG \\
        --cfg-options model.teacher.type=CachedTeacher model.teacher.path=PATH

A train pipeline that crops, scales or mixes images at random needs views: --views 8 draws each
image eight times, runs the teacher on exactly these, and training draws the same again.

If a run is stopped, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkd_plugin.cache.costs import Cost
from mmkd_plugin.cache.drawn import (
    DrawnViews,
    digest_of,
    drawn_from,
    innermost,
    parts_drawn,
    preprocessor_of,
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
from mmkd_plugin.cache.records import OF_SCORES, Record, projection, unpack
from mmkd_plugin.cache.store import (
    DTYPES,
    CacheError,
    CacheWriter,
    TeacherCache,
    check_space,
    human_size,
    libraries,
    mirrored,
    of_view,
    pack,
    record_key,
    record_names,
    stored_size,
)
from mmkd_plugin.cache.wiring import NO_WAY, is_cached
from mmkd_plugin.cli import (
    UsageError,
    add_cfg_options,
    apply_options,
    check_folder,
    check_has,
    check_number,
    is_distilled,
    plain_errors,
    progress_bar,
    read_config,
)
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.run_config import check_run
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.base import Trial
from mmkd_plugin.teachers.cached import stored_as
from mmkd_plugin.teachers.caching import (
    description,
    drawn_pictures,
    padding_values,
    whole_picture,
)
from mmkd_plugin.teachers.configs import kind_of_teacher, teacher_configs
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.terms.term import Term
from mmkd_plugin.training_data import CheckedPipeline, Expected, dataset_errors_named
from mmkd_plugin.unlabelled.pipelines import complete
from mmkd_plugin.views import View, of_kind

AS_BUILT = dict(precision='fp32', channels_last=False, fuse_conv_bn=False)
"""Exact rather than fast: the teacher runs once, and every epoch reads what it gave."""

TRIED = 8
"""Number of images from which the size of the cache is estimated."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a distilled config: a path, or mmseg::... or mmdet::...')
    parser.add_argument(
        '--out', help='the folder of the cache; default: the `path` of a CachedTeacher in CONFIG'
    )
    parser.add_argument('--teacher', metavar='NAME', help='which teacher, if there are several')
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        default='float16',
        help='type of the stored numbers; uint8 keeps 256 steps for each channel of each image; '
        'compact keeps 31 steps of the probabilities of classes where losses compare these alone, '
        'else it is uint8, and compresses longer; smallest keeps the rounded waves of blocks of '
        'these, in half the size',
    )
    parser.add_argument(
        '--views',
        type=int,
        metavar='K',
        help='draw each image K times from the train pipeline, and run the teacher on these; more '
        'can be added later with a larger K',
    )
    parser.add_argument(
        '--channels',
        type=int,
        metavar='N',
        help='store N random mixtures of the channels of maps that have more; class scores and '
        'explanations stay whole',
    )
    parser.add_argument(
        '--top-k',
        type=int,
        metavar='K',
        help='store the K largest logits only, where losses compare the probabilities of classes',
    )
    parser.add_argument(
        '--scale',
        metavar='WIDTH,HEIGHT',
        help='size of the images on which the teacher runs; default: that of the train pipeline',
    )
    parser.add_argument(
        '--mirrored',
        action=argparse.BooleanOptionalAction,
        help='run the teacher on mirrored images too, or not; default: as the train pipeline '
        'mirrors images, or not',
    )
    parser.add_argument(
        '--workers', type=int, default=2, help='number of processes that load images (2)'
    )
    parser.add_argument(
        '--verify', action='store_true', help='read a whole cache and check every record'
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check(args)
        libraries()
        cfg = read_config(args.config)
        apply_options(cfg, args.cfg_options)
        check_has(cfg, args.config, 'train_dataloader')
        if not is_distilled(cfg):
            raise UsageError(f'{args.config} distils nothing: its model is no Distiller')
        check_run(cfg)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        complete(cfg)
        config = pick_teacher(cfg, args)
        if args.verify:
            verify(args.out, cfg)
        else:
            write_cache(cfg, config, args)


def check(args: argparse.Namespace) -> None:
    """Refuse wrong arguments before anything is loaded."""
    check_number(args.workers, '--workers', 0)
    check_number(args.top_k, '--top-k', 1)
    check_number(args.views, '--views', 1)
    check_number(args.channels, '--channels', 1)
    if args.top_k is not None and args.dtype in OF_SCORES:
        raise UsageError(
            f'--dtype {args.dtype} keeps each class that a loss can see; leave --top-k out'
        )
    if args.views is not None and (args.scale is not None or args.mirrored is not None):
        option = '--scale' if args.scale is not None else '--mirrored'
        raise UsageError(f'{option} is for whole images; views come as the train pipeline draws')
    if args.scale is not None:
        read_scale(args.scale)
    if args.out is not None and not args.verify:
        check_folder(args.out, '--out')


def read_scale(given: str) -> tuple[int, int]:
    """Read WIDTH,HEIGHT."""
    try:
        width, height = (int(side) for side in given.split(','))
    except ValueError:
        width = height = 0
    if min(width, height) < 1:
        raise UsageError(f'--scale is WIDTH,HEIGHT in pixels, not {given}')
    return width, height


def pick_teacher(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the config of the chosen teacher, as one that runs; sets ``args.out``."""
    configs = teacher_configs(cfg.model.get('teacher') or {})
    configs = {name: one for name, one in configs.items() if not kind_of_teacher(one).learns}
    name = args.teacher or (next(iter(configs)) if len(configs) == 1 else None)
    if name not in configs:
        said = f'there is no --teacher {name}' if name else 'say which: --teacher NAME'
        raise UsageError(f'{said}; those that can be cached: {", ".join(configs) or "none"}')
    config = configs[name]
    if is_cached(config):
        args.out = args.out or config.get('path')
        args.views = args.views or config.get('views')
        runs = inspect.signature(OnlineTeacher).parameters
        config = {key: value for key, value in config.items() if key in runs}
        if not args.verify and 'config' not in config:
            raise UsageError(f"teacher '{name}' has no `config` and no `checkpoint` to run it")
    if args.out is None:
        raise UsageError('say where: --out PATH')
    if not args.verify:
        check_folder(args.out, '--out')
    return config


def write_cache(cfg: Config, config: dict[str, Any], args: argparse.Namespace) -> None:
    lost = lost_in_whole_images(cfg)
    with_views = args.views is not None and bool(lost)
    terms = terms_of(cfg, config['name'], warped=not with_views)
    views = [term.teacher_view for term in terms]
    explaining = {stored_as(view): view for view in of_kind(views, 'explanations')}
    views = [*of_kind(views, 'maps'), *explaining.values()]  # each explanation once
    if with_views:
        source: Whole | Drawn = Drawn(cfg, args)
    else:
        source = Whole(cfg, args, lost)

    device = torch.device(get_device())
    preprocessor = MODELS.build(preprocessor_of(cfg)).to(device)
    teacher = OnlineTeacher(**{'inference': AS_BUILT, **config})
    preview = teacher.prepare(Trial(None, preprocessor, DryRun()), views, device)
    teacher.model.to(device)
    norms = [name for term in terms for name in term.norm_names or ()]
    meta = dict(description(teacher, config, preview, views, norms), **source.meta)
    meta |= dict(dtype=args.dtype, top_k=args.top_k)
    about = meta['taps']
    for name, values in padding_values(teacher, preprocessor, views, preview.size).items():
        about[name]['fill'] = values
    set_top_k(about, terms, args.top_k)
    if args.dtype in OF_SCORES:
        set_tau(about, terms)
        meta['tau'] = {name: one['tau'] for name, one in about.items() if one['tau'] is not None}
    if args.channels is not None:
        set_channels(about, terms, args.channels)
        meta['channels'] = args.channels

    with CacheWriter(args.out, meta) as writer:
        left = source.missing(writer, about)
        print(
            f"teacher '{teacher.name}' ({teacher.source}): {', '.join(about)}; "
            f'{source.told(len(left))} in {args.out} already'
        )
        for line in source.reasons:
            print(line)
        if not left:
            writer.finish()
            return
        writer.reopen()
        left = spread(left)
        costs = Costs(meta)
        records = source.run(left, teacher, preprocessor, views, costs)
        store(writer, records, len(left), source.what, costs)
        writer.finish()
    print(f'{args.out}: {human_size(Path(args.out, "data.mdb").stat().st_size)}')


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
        args (argparse.Namespace): The arguments of the tool.
        lost (Sequence[str]): The transforms that the maps do not follow.
    """

    what = 'images'

    def __init__(self, cfg: Config, args: argparse.Namespace, lost: Sequence[str]) -> None:
        try:
            holders = [holder for holder, key, _ in train_pipelines(cfg) if key == 'pipeline']
            loading, scale = image_settings(holders, args.scale)
            record_training(Config(cfg.to_dict()), ignored(cfg))  # refuses what it cannot replay
        except ValueError as error:
            raise UsageError(f'{error}. Or store views of it: --views 8') from error
        self.images = training_images(cfg, common_root(holders))
        self.loading, self.scale, self.workers = loading, scale, args.workers
        self.meta = dict(
            loading=plain(loading),
            scale=plain(scale),
            scale_given=args.scale is not None,
            mirrored=any(mirrors(holder['pipeline']) for holder in holders)
            if args.mirrored is None
            else args.mirrored,
        )
        self.reasons = []
        if lost:
            told = 'the maps are those of whole images, which do not show what '
            told += f'{", ".join(lost)} {"does" if len(lost) == 1 else "do"} to them'
            if any(scales_at_random(holder['pipeline']) for holder in holders):
                told = (
                    'the train pipeline scales images at random, and the maps are those at one '
                    'scale: students learn less from them, see docs/cached_teacher.md, "Trained '
                    'with both"'
                )
            self.reasons = [f'{told}; --views 8 with another --out stores maps that do']
        elif args.views is not None:
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
        costs: Costs,
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Runs the teacher; yields names of images and their packed records."""
        dataset = ScaledImages([self.images[name] for name in left], self.loading, self.scale)
        dataset.load = [CheckedPipeline(dataset.load, Expected(), packs=False)]
        if dataset.scale is not None:
            dataset.scale = CheckedPipeline([dataset.scale], Expected(), packs=False)
        loader = DataLoader(dataset, batch_size=None, num_workers=self.workers)
        images: Iterator[tuple[Tensor, tuple[int, int]]] = iter(loader)
        for name in left:
            packed = {}
            try:
                image, loaded = next(images)
                for called in (str, mirrored) if self.meta['mirrored'] else (str,):
                    seen = image.flip(2) if called is mirrored else image
                    records = whole_picture(teacher, preprocessor, seen, loaded, costs.about, views)
                    packed |= costs.pack(name, records, called)
            except UsageError:
                raise
            except ValueError as error:
                raise UsageError(f'{name}: {error}') from error
            yield name, packed


class Drawn:
    """Views: each image as the train pipeline draws it, several times.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The arguments of the tool.
    """

    what = 'views'

    def __init__(self, cfg: Config, args: argparse.Namespace) -> None:
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
        self.views, self.workers = args.views, args.workers
        self.batch_size = cfg.train_dataloader.get('batch_size') or 1
        self.meta = dict(drawn=dict(drawn, images=digest_of(names)), views=args.views)
        self.reasons = []

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
        costs: Costs,
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Runs the teacher; yields names of images and their packed records."""
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
                        teacher, preprocessor, [item for *_, item in same], costs.about, views
                    )
                except ValueError as error:
                    raise UsageError(f'{same[0][0]}: {error}') from error
                for (name, view, _), records in zip(same, found):
                    yield name, costs.pack(name, records, lambda tap, v=view: of_view(tap, v))


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


class Costs:
    """Packs records, and measures on the first ones what that costs.

    Args:
        meta (dict): Metadata of the cache.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self.dtype, self.channels = meta['dtype'], meta.get('channels')
        #: What the teacher gives, channels not mixed yet.
        self.about = {
            name: dict(one, maps=one.get('unmixed', one['maps']))
            for name, one in meta['taps'].items()
        }
        self.told = self.dtype != 'float16' or self.channels or meta['top_k']
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
            if 'unmixed' in about:
                mixed = [mix(maps, self.channels) for maps in exact]
                record = replace(record, maps=mixed)
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


def mix(maps: np.ndarray, channels: int) -> np.ndarray:
    """Projects maps ``(C, H, W)`` to fewer channels, if they have more."""
    if len(maps) <= channels:
        return maps
    return np.tensordot(projection(len(maps), channels), maps, 1)


def terms_of(cfg: Config, teacher: str, warped: bool) -> list[Term]:
    """Returns the terms that learn from a teacher, whose maps are warped in training or not."""
    names = list(teacher_configs(cfg.model.teacher))
    terms = [
        Term.from_config(name, line, names) for name, line in (cfg.model.distill or {}).items()
    ]
    terms = [term for term in terms if teacher in term.teachers]
    if not terms:
        raise UsageError(f"no term of `distill` learns from teacher '{teacher}'")
    for term in terms:
        if term.through is not None or term.queries is not None or term.on_rois:
            key = '.through' if term.through is not None else '.queries' if term.queries else ''
            raise UsageError(
                f'distill.{term.name}{key}: no cache can replace this teacher. {NO_WAY}'
            )
        if warped:
            term.check_stored()
        if term.traits.compares == 'gradients':
            raise UsageError(
                f'distill.{term.name} compares gradients of the task loss, which depend on the '
                'labels of each crop: they cannot be stored. Train this one with the teacher itself'
            )
    return terms


def image_settings(holders: Sequence[dict], given: str | None) -> tuple[list[dict], dict | None]:
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
    return loading[0], dict(type='Resize', scale=read_scale(given), keep_ratio=True)


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


def set_top_k(about: dict[str, dict], terms: Sequence[Term], k: int | None) -> None:
    """Notes for each tap how many of its logits are stored."""
    independent = {
        str(tap)
        for term in terms
        if term.explainer is not None and about[stored_as(term.teacher_view)]['scores'][1]
        for tap in term.teacher_view.scores
    }
    for name, one in about.items():
        if 'scores' in one:  # explanations
            one['top_k'] = None
            continue
        compared = traits_of(name, terms)
        fits = (
            k is not None
            and name not in independent
            and all(traits.compares_probabilities for traits in compared)
        )
        one['top_k'] = k if fits else None
        if fits and not 0 < k < min(channels for channels, *_ in one['maps']):
            raise UsageError(f"--top-k {k}: '{name}' gives {one['maps'][0][0]} classes")
    if k is not None and not any(one['top_k'] for one in about.values()):
        raise UsageError(
            '--top-k keeps the probabilities of classes, and no term compares these alone, as '
            'PixelWiseLoss and SoftTargetLoss do with a softmax'
        )


def set_tau(about: dict[str, dict], terms: Sequence[Term]) -> None:
    """Notes for each tap the temperature of its probabilities, if losses compare these alone."""
    for name, one in about.items():
        traits = traits_of(name, terms)
        alone = bool(traits) and all(each.compares_probabilities for each in traits)
        explained = any(
            Tap.parse(name) in term.teacher_view.scores
            for term in terms
            if term.explainer is not None
        )
        fits = 'scores' not in one and alone and not explained
        one['tau'] = max(each.tau for each in traits) if fits else None


def set_channels(about: dict[str, dict], terms: Sequence[Term], channels: int) -> None:
    """Notes for each tap whose channels are mixed how many are left."""
    for name, one in about.items():
        traits = traits_of(name, terms)
        whole = any(each.compares_probabilities or each.needs_raw_maps for each in traits)
        scores = 'scores' in one or any(one.get('class_scores') or ())
        more = any(count > channels for count, *_ in one['maps'])
        if whole or scores or not more or not traits:
            continue
        one['unmixed'] = one['maps']
        one['maps'] = [[min(count, channels), *strides] for count, *strides in one['maps']]
        one['fill'] = [mix(np.array(fill), channels).tolist() for fill in one['fill']]
        one['norms'] = ['' for _ in one['norms']]
    if not any('unmixed' in one for one in about.values()):
        raise UsageError(
            f'--channels {channels}: no map has more channels that may be mixed; class scores and '
            'explanations stay whole'
        )


def traits_of(tap: str, terms: Sequence[Term]) -> list[LossTraits]:
    """The traits of the losses that compare the maps of a tap."""
    return [
        term.traits
        for term in terms
        if term.explainer is None and Tap.parse(tap) in term.teacher_tap.taps
    ]


def spread(images: Sequence[Any]) -> list[Any]:
    """Returns the same images, a few from all over the list first: they give the estimate."""
    step = max(len(images) // TRIED, 1)
    first = list(images[::step][:TRIED])
    others = set(first)
    return first + [image for image in images if image not in others]


def store(
    writer: CacheWriter,
    records: Iterator[tuple[str, dict[str, bytes]]],
    total: int,
    what: str,
    costs: Costs,
) -> None:
    """Writes records as they come, once an estimate has shown that the disk has room for all."""
    console = Console()
    with progress_bar(console) as progress:
        bar = progress.add_task(what, total=total)
        waiting: list[tuple[str, dict[str, bytes]]] | None = []
        for name, packed in records:
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


def verify(path: str, cfg: Config) -> None:
    """Reads every record and compares the images with the training set."""
    cache = TeacherCache(path)
    if 'views' in cache.meta:
        images = dict.fromkeys(name for part in drawn_parts(cfg) for name in part.names())
    else:
        images = training_images(cfg, common_root([*places_of(cfg)]))
    count, damaged = 0, []
    with progress_bar() as progress:
        for image, tap in progress.track(list(cache.keys()), description='verifying'):
            count += 1
            try:
                cache.read(image, tap)
            except CacheError as error:
                damaged.append(str(error))
    if damaged:
        more = f' And {len(damaged) - 1} more are damaged.' if len(damaged) > 1 else ''
        raise UsageError(damaged[0] + more)
    missing = cache.missing(images)
    if missing:
        raise UsageError(
            f'{path} lacks {len(missing)} of {len(images)} training images, such as {missing[0]}; '
            'run the same command without --verify'
        )
    print(f'{path}: {count} records of {len(images)} images are whole')


if __name__ == '__main__':
    main()
