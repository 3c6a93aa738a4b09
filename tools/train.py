"""Train a model of mmsegmentation or mmdetection, distilled or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmkd_plugin.cli import load_config, plain_errors
from mmkd_plugin.cores import Cores
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.training import add_training_arguments, replay, train


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', nargs='?', help='a config: a path, mmseg::..., mmdet::... or mmkd::...'
    )
    parser.add_argument(
        '--paraphraser',
        action='store_true',
        help='train the `teacher_connector` (the paraphraser of factor transfer) and save it in '
        'the work dir, where the training of the student finds it',
    )
    parser.add_argument(
        '--replay',
        metavar='DIR',
        help='run a step again whose loss was not finite, and say what went wrong first; DIR is '
        'nan_<iteration> in the work dir, or the file in it of one process of several',
    )
    add_training_arguments(parser)
    args = parser.parse_args()
    if (args.config is None) == (args.replay is None):
        parser.error('give a config, or --replay DIR')
    return args


def main() -> None:
    start = Cores.now()
    with safe_loading(), plain_errors():
        args = parse_args()
        if args.replay is not None:
            replay(args.replay)
            return
        train(load_config(args), args, start, args.paraphraser)


if __name__ == '__main__':
    main()
