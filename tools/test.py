"""Test a model of mmsegmentation or mmdetection: for a distilled config, its student alone."""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.fileio import dump
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mmkd_plugin.base_variables import warn_of_base_variables
from mmkd_plugin.checkpoint import load_weights, read_checkpoint
from mmkd_plugin.cli import (
    UsageError,
    add_run_arguments,
    build_runner,
    check_file,
    check_folder,
    check_has,
    check_number,
    complete_metrics,
    is_distilled,
    is_own,
    load_config,
    metrics_of,
    plain_errors,
    use_student,
)
from mmkd_plugin.runner_errors import runner_errors_named
from mmkd_plugin.saving import replacing
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.training_data import watch_test_data
from mmkd_plugin.words import as_written, type_name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config: a path, mmseg::..., mmdet::... or mmkd::...')
    parser.add_argument('checkpoint', help='the weights to test: a file or a URL')
    parser.add_argument(
        '--out',
        help='keep the predictions: a .pkl file, or for segmentation a folder for label maps',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save images with the predictions painted on them')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for each image shown')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='test although the checkpoint does not fit the model exactly',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check_outputs(args)
        cfg = load_config(args)
        check_has(cfg, args.config, 'test_dataloader', 'test_cfg', 'test_evaluator')
        distilled = cfg.model if is_distilled(cfg) else None
        use_student(cfg)
        complete_metrics(cfg, distilled)
        read_checkpoint(args.checkpoint)  # refuse a bad file before anything else happens
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.show or args.show_dir:
            visualize(cfg, args)
        if args.tta:
            use_tta(cfg)
        if args.out is not None and not is_pickle(args.out):
            keep_label_maps(cfg, args.out)
        try:
            runner = build_runner(cfg)
        finally:
            read = ('test_dataloader', 'test_evaluator')
            warn_of_base_variables(cfg, args.cfg_options or (), read)
        check_fit(runner, args)
        watch_test_data(runner)
        with runner_errors_named(cfg):
            if args.out is not None and is_pickle(args.out):
                dump_predictions(runner.test_evaluator, cfg, args.out)
            runner.test()


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse what cannot be written, before anything is loaded."""
    check_number(args.wait_time, '--wait-time', 0)
    if args.show_dir is not None:
        check_folder(args.show_dir, '--show-dir')
    if args.out is not None and is_pickle(args.out):
        check_file(args.out, '--out')
    elif args.out is not None:
        check_folder(args.out, '--out')


def check_fit(runner: Runner, args: argparse.Namespace) -> None:
    """Refuse a checkpoint that leaves part of the model untrained; mmengine would only log it."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    strict = not args.allow_partial
    load_weights(model, args.checkpoint, strict, name='model', lenient='--allow-partial')


def visualize(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir need `default_hooks.visualization` in the config')
    hook.draw, hook.interval = True, 1  # every image
    if args.show:
        hook.show, hook.wait_time = True, args.wait_time
    if not args.show_dir:
        return
    if 'Det' in type_name(hook.type):
        hook.test_out_dir = args.show_dir
    else:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    for metric in metrics_of(cfg):
        if is_own(metric):
            raise UsageError(
                f'--tta: {as_written(metric.type)} measures predictions for one view of an image'
            )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if cfg.get('tta_model') is None or cfg.get('tta_pipeline') is None:
        if cfg.get('default_scope') != 'mmdet':
            raise UsageError('--tta needs `tta_model` and `tta_pipeline` in the config')
        add_flip_tta(cfg, dataset)
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def add_flip_tta(cfg: Config, dataset: ConfigDict) -> None:
    """Average over an image and its mirror image, as mmdetection does by default."""
    nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    if cfg.get('tta_model') is None:
        cfg.tta_model = ConfigDict(type='DetTTAModel', tta_cfg=nms)
    if cfg.get('tta_pipeline') is not None:
        return
    pack = deepcopy(dataset.pipeline[-1])
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pack.meta_keys = (*keys, 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    augment = ConfigDict(type='TestTimeAug', transforms=[flips, [pack]])
    cfg.tta_pipeline = [*dataset.pipeline[:-1], augment]


def is_pickle(out: str) -> bool:
    return out.endswith(('.pkl', '.pickle'))


def keep_label_maps(cfg: Config, folder: str) -> None:
    """Let mmsegmentation's metrics write the predicted label maps."""
    for metric in metrics_of(cfg):
        if is_own(metric):
            continue
        if cfg.get('default_scope') == 'mmdet' or 'IoU' not in type_name(metric.type):
            raise UsageError(
                f'--out takes a .pkl file with the metric {as_written(metric.type)}, not {folder}'
            )
        metric.output_dir, metric.keep_results = folder, True


def dump_predictions(evaluator: Evaluator, cfg: Config, out: str) -> None:
    if cfg.get('default_scope') == 'mmdet':  # its own class writes masks compactly
        metric = METRICS.build(dict(type='mmdet.DumpDetResults', out_file_path=out))
    else:
        metric = DumpResults(out_file_path=out)
    metric.compute_metrics = partial(keep_predictions, out=out)
    evaluator.metrics.append(metric)


def keep_predictions(predictions: list, out: str) -> dict:
    """Write the file whole, which mmengine does not; return the numbers of a metric: none."""
    with replacing(out) as (beside,):
        dump(predictions, str(beside), 'pkl')
    print_log(f'The predictions are in {out}.', logger='current')
    return {}


if __name__ == '__main__':
    main()
