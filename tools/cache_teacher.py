"""Run the teacher of a config once on each training image and store what the student learns from.

CONFIG is a distilled config. Train with the same one and no teacher in memory:

    python tools/cache_teacher.py CONFIG --out PATH
    python tools/train.py CONFIG \\
        --cfg-options model.teacher.type=CachedTeacher model.teacher.path=PATH

If a run is stopped, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkd_plugin.cache.images import (
    ScaledImages,
    common_root,
    images_of,
    loading_part,
    mirrors,
    plain,
    scales_at_random,
    training_scale,
)
from mmkd_plugin.cache.recording import record_training, train_pipelines
from mmkd_plugin.cache.store import (
    DTYPES,
    CacheError,
    CacheWriter,
    TeacherCache,
    check_space,
    human_size,
    libraries,
    mirrored,
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
    read_config,
)
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.base import Trial
from mmkd_plugin.teachers.cached import stored_as
from mmkd_plugin.teachers.caching import description, padding_values, whole_picture
from mmkd_plugin.teachers.configs import kind_of_teacher, teacher_configs
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.terms.term import Term
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
        help='type of the stored numbers; uint8 keeps 256 steps for each channel of each image',
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
    terms = terms_of(cfg, config['name'])
    views = [term.teacher_view for term in terms]
    explaining = {stored_as(view): view for view in of_kind(views, 'explanations')}
    views = [*of_kind(views, 'maps'), *explaining.values()]  # each explanation once
    holders = [holder for holder, key, _ in train_pipelines(cfg) if key == 'pipeline']
    loading, scale = image_settings(holders, args.scale)
    record_training(Config(cfg.to_dict()), ignored(cfg))  # refuses what cannot be replayed
    images = training_images(cfg, common_root(holders))

    device = torch.device(get_device())
    preprocessor = build_preprocessor(cfg).to(device)
    teacher = OnlineTeacher(**{'inference': AS_BUILT, **config})
    preview = teacher.prepare(Trial(None, preprocessor, DryRun()), views, device)
    teacher.model.to(device)
    norms = [name for term in terms for name in term.norm_names or ()]
    meta = dict(
        description(teacher, config, preview, views, norms),
        loading=plain(loading),
        scale=plain(scale),
        scale_given=args.scale is not None,
        dtype=args.dtype,
        top_k=args.top_k,
        mirrored=any(mirrors(holder['pipeline']) for holder in holders)
        if args.mirrored is None
        else args.mirrored,
    )
    about = meta['taps']
    for name, values in padding_values(teacher, preprocessor, views, preview.size).items():
        about[name]['fill'] = values
    set_top_k(about, terms, args.top_k)

    with CacheWriter(args.out, meta) as writer:
        left = writer.missing(images, record_names(meta))
        print(
            f"teacher '{teacher.name}' ({teacher.source}): {', '.join(about)}; {len(images)} "
            f'images{" and their mirror images" if meta["mirrored"] else ""}, '
            f'{len(images) - len(left)} of them in {args.out} already'
        )
        if any(scales_at_random(holder['pipeline']) for holder in holders):
            print(
                'the train pipeline scales images at random, and the maps are those at one scale: '
                'students learn less from them, see docs/cached_teacher.md, "Trained with both"'
            )
        if not left:
            writer.finish()
            return
        writer.reopen()
        left = spread(left)
        dataset = ScaledImages([images[image] for image in left], loading, scale)
        records = run_all(left, dataset, teacher, preprocessor, meta, views, args.workers)
        store(writer, records, len(left))
        writer.finish()
    print(f'{args.out}: {human_size(Path(args.out, "data.mdb").stat().st_size)}')


def terms_of(cfg: Config, teacher: str) -> list[Term]:
    """Returns the terms that learn from a teacher."""
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


def training_images(cfg: Config, root: str) -> dict[str, tuple[Any, int]]:
    """Returns the images of the training set, and those without labels beside it."""
    images = images_of(DATASETS.build(cfg.train_dataloader.dataset), root)
    more = cfg.model.get('unlabelled')
    if more is not None and not more.get('only'):
        images = {**images_of(DATASETS.build(more.dataset), root), **images}
    return images


def ignored(cfg: Config) -> list[str]:
    """Returns the names of transforms that leave each pixel in its place, as the config says."""
    teachers = cfg.model.teacher
    teachers = [teachers] if isinstance(teachers, dict) else teachers
    return [name for one in teachers if is_cached(one) for name in one.get('ignore', ())]


def build_preprocessor(cfg: Config) -> nn.Module:
    config = cfg.model.student.get('data_preprocessor') or cfg.model.get('data_preprocessor')
    return MODELS.build(config or cfg.data_preprocessor)


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
        compared = [
            term.traits
            for term in terms
            if term.explainer is None and Tap.parse(name) in term.teacher_tap.taps
        ]
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


def spread(images: Sequence[str]) -> list[str]:
    """Returns the same images, a few from all over the list first: they give the estimate."""
    step = max(len(images) // TRIED, 1)
    first = list(images[::step][:TRIED])
    return first + [image for image in images if image not in set(first)]


def run_all(
    names: Sequence[str],
    dataset: ScaledImages,
    teacher: OnlineTeacher,
    preprocessor: nn.Module,
    meta: dict[str, Any],
    views: Sequence[View],
    workers: int,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Runs the teacher; yields names of images and their packed records."""
    about = meta['taps']
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    images: Iterator[tuple[Tensor, tuple[int, int]]] = iter(loader)
    for name in names:
        packed = {}
        try:
            image, loaded = next(images)
            for called in (str, mirrored) if meta['mirrored'] else (str,):
                seen = image.flip(2) if called is mirrored else image
                records = whole_picture(teacher, preprocessor, seen, loaded, about, views)
                for tap, record in records.items():
                    key = record_key(name, called(tap))
                    packed[called(tap)] = pack(record, key, meta['dtype'], about[tap]['top_k'])
        except ValueError as error:
            raise UsageError(f'{name}: {error}') from error
        yield name, packed


def store(writer: CacheWriter, records: Iterator[tuple[str, dict[str, bytes]]], total: int) -> None:
    """Writes records as they come, once an estimate has shown that the disk has room for all."""
    console = Console()
    columns = (
        TextColumn('teacher'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('images,'),
        TimeRemainingColumn(),
        TextColumn('left'),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task('teacher', total=total)
        waiting: dict[str, dict[str, bytes]] | None = {}
        for name, packed in records:
            if waiting is None:
                writer.write(name, packed)
            else:
                waiting[name] = packed
                if len(waiting) == min(TRIED, total):
                    mean = sum(map(stored_size, waiting.values())) / len(waiting)
                    console.print(check_space(writer.path, int(mean * total), total))
                    for one in waiting.items():
                        writer.write(*one)
                    waiting = None
            progress.advance(bar)


def verify(path: str, cfg: Config) -> None:
    """Reads every record and compares the images with the training set."""
    cache = TeacherCache(path)
    holders = [holder for holder, key, _ in train_pipelines(cfg) if key == 'pipeline']
    images = training_images(cfg, common_root(holders))
    count, damaged = 0, []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
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
