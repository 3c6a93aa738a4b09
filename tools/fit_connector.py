"""Measure the teacher connectors of a config on its training images, before the student trains.

CONFIG is a distilled config with a `teacher_connector` such as `mmkd_plugin.PHISNormalizer`. Train
with the same one afterwards:

    python tools/fit_connector.py CONFIG
    python tools/train.py CONFIG
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmengine.runner import set_random_seed

from mmkd_plugin.__main__ import as_typed
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
    use_scope,
)
from mmkd_plugin.fitting import Fitting, files_of, measured_lines, training_images
from mmkd_plugin.run_config import check_run
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.training_data import dataset_errors_named


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=as_typed(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help='a distilled config: a path, mmseg::..., mmdet::... or mmkd::...'
    )
    parser.add_argument(
        '--work-dir',
        help='the work dir of the training, in which it looks for files without a `checkpoint`; '
        + as_typed('default: as tools/train.py has it'),
    )
    parser.add_argument(
        '--images', type=int, metavar='N', help='measure on N training images, chosen at random'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace files that are there already'
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check_number(args.images, '--images', 1)
        if args.work_dir is not None:
            check_folder(args.work_dir, '--work-dir')
        cfg = read_config(args.config)
        apply_options(cfg, args.cfg_options)
        check_has(cfg, args.config, 'train_dataloader')
        if not is_distilled(cfg):
            raise UsageError(f'{args.config} distils nothing: its model is no Distiller')
        check_run(cfg)
        work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
        use_scope(cfg)
        lines = measured_lines(cfg)
        files = files_of(lines, work_dir)
        for path in files:
            check_new(path, args.overwrite)
        set_random_seed(0)
        fitting = Fitting(cfg, lines)
        with dataset_errors_named('train', cfg.train_dataloader):
            loader = training_images(cfg, args.images)
        with progress_bar() as progress:
            for data in progress.track(loader, total=len(loader), description='images'):
                fitting.observe(data)
        print(f'measured on {len(loader)} images')
        for path, terms in files.items():
            fitting.save(path, terms)
            print(f'{path}: {", ".join(terms)}; train the student now.')


def check_new(path: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or that is there already."""
    if Path(path).exists() and not overwrite:
        raise UsageError(f'there is one at {path} already; move it away, or add --overwrite')
    check_folder(Path(path).parent, 'checkpoint')


if __name__ == '__main__':
    main()
