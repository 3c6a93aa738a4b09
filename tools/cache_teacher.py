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
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmengine.config import Config

from mmkd_plugin.__main__ import as_typed
from mmkd_plugin.cache.projections import KINDS
from mmkd_plugin.cache.records import OF_SCORES
from mmkd_plugin.cache.store import DTYPES, libraries
from mmkd_plugin.cache.wiring import is_cached
from mmkd_plugin.cache_writing import Settings, verify, write_cache
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
    use_scope,
)
from mmkd_plugin.run_config import check_run
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.teachers.configs import kind_of_teacher, teacher_configs
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.unlabelled.pipelines import complete


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=as_typed(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help='a distilled config: a path, mmseg::..., mmdet::... or mmkd::...'
    )
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
        help='store N mixtures of the channels of maps that have more; class scores and '
        'explanations stay whole',
    )
    parser.add_argument(
        '--projection',
        choices=KINDS,
        help='how --channels mixes: at random (default), or by the principal components of the '
        'maps of a few images',
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
        use_scope(cfg)
        complete(cfg)
        config = pick_teacher(cfg, args)
        if args.verify:
            verify(args.out, cfg)
        else:
            given = {one.name: getattr(args, one.name) for one in fields(Settings)}
            write_cache(cfg, config, Settings(**given))


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
    if args.projection is not None and args.channels is None:
        raise UsageError('--projection says how --channels mixes channels; add --channels N')
    args.projection = args.projection or 'random'
    if args.scale is not None:
        args.scale = read_scale(args.scale)
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


if __name__ == '__main__':
    main()
