"""Train a model of mmsegmentation or mmdetection, distilled or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint, save_checkpoint

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.cli import (
    UsageError,
    add_run_arguments,
    build_runner,
    is_distilled,
    load_config,
    plain_errors,
)
from mmkd_plugin.paraphrasing import FILE_NAME, has_teacher_connector, stage_config
from mmkd_plugin.run_config import check_run
from mmkd_plugin.stack import safe_loading


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config: a path, or mmseg::... or mmdet::...')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size, from the `auto_scale_lr` of the config',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the latest in the work dir, '
        'or from the start if there is none yet',
    )
    parser.add_argument(
        '--paraphraser',
        action='store_true',
        help='train the `teacher_connector` (the paraphraser of factor transfer) and save it in '
        'the work dir, where the training of the student finds it',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        cfg = load_config(args)
        check_run(cfg)
        if args.amp:
            use_amp(cfg)
        if args.auto_scale_lr:
            use_auto_scale_lr(cfg)
        saved = find_paraphraser(cfg, args.paraphraser)
        if args.resume == 'auto':
            resume_latest(cfg)
        elif args.resume is not None:
            cfg.resume, cfg.load_from = True, args.resume
        check_start(cfg)
        wire(cfg)
        runner = build_runner(cfg)
        runner.train()
        if args.paraphraser:
            save_paraphraser(runner, saved)


def use_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper == 'AmpOptimWrapper':
        print_log('--amp: the config trains in mixed precision already.', logger='current')
    elif wrapper != 'OptimWrapper':
        raise UsageError(f'--amp works with the optim wrapper `OptimWrapper`, not with `{wrapper}`')
    elif get_device() == 'cpu':
        raise UsageError('--amp needs an accelerator, and there is none')
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


def use_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            '--auto-scale-lr needs `auto_scale_lr=dict(base_batch_size=...)` in the config'
        )
    cfg.auto_scale_lr.enable = True


def find_paraphraser(cfg: Config, train_it: bool) -> Path:
    """Return the file of the trained teacher connectors; if asked, make the config train them."""
    path = Path(cfg.work_dir, FILE_NAME)
    lines = (cfg.model.get('distill') or {}) if is_distilled(cfg) else {}
    lines = [line for line in lines.values() if has_teacher_connector(line)]
    if train_it:
        if not lines:
            raise UsageError('--paraphraser: no term of `distill` has a `teacher_connector`')
        if path.exists():
            raise UsageError(
                f'--paraphraser: there is one at {path} already; move it away, or take another '
                '--work-dir'
            )
        stage_config(cfg, str(path.with_suffix('')))
    else:
        for line in lines:
            line.teacher_connector.setdefault('checkpoint', str(path))
    return path


def save_paraphraser(runner: Runner, path: Path) -> None:
    if is_main_process():
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        save_checkpoint(dict(state_dict=model.paraphrasers.state_dict()), str(path))
        print_log(f'The paraphraser is at {path}; train the student now.', logger='current')


def resume_latest(cfg: Config) -> None:
    """Point the config at the latest checkpoint of the work dir, if there is one."""
    latest = find_latest_checkpoint(cfg.work_dir)
    if latest is None:
        print_log(f'--resume: nothing in {cfg.work_dir} yet, starting anew.', logger='current')
        cfg.resume = False
        return
    moved = Path(cfg.work_dir, Path(latest).name)
    if '://' not in latest and not Path(latest).is_file() and moved.is_file():
        latest = str(moved)  # the work dir was renamed or copied since
    cfg.resume, cfg.load_from = True, latest


def check_start(cfg: Config) -> None:
    """Read the checkpoint that the run starts from, to refuse a bad file before anything else."""
    path = cfg.get('load_from')
    if path is None and cfg.get('resume'):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is None:
        return
    checkpoint = read_checkpoint(path)
    if cfg.get('resume') and not {'meta', 'message_hub'} <= set(checkpoint):
        raise UsageError(
            f'{path} holds weights, but not the state of a training run, so it cannot be resumed: '
            f'start from it with --cfg-options load_from={path}'
        )


if __name__ == '__main__':
    main()
