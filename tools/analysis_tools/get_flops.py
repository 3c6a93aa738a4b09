"""Print parameters and FLOPs of the student and the teachers of a distilled config, or of a model.

An image is made up, so no data set and no weights are needed. A multiplication with its addition
counts as one operation, as mmengine counts them. Auxiliary heads, which only train, are left out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # from a clone that is not installed

import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from rich.table import Table
from torch import Tensor, nn

from mmkd_plugin.cli import (
    UsageError,
    add_cfg_options,
    apply_options,
    check_scope,
    is_distilled,
    plain_errors,
    read_config,
    stages,
)
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps.example import example_batch
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.model import build_model
from mmkd_plugin.words import first_line, table_text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a config: a path, mmseg::..., mmdet::... or mmkd::...')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        default=[512, 512],
        metavar='SIDE',
        help='height and width of the image, or one number for both (512)',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        if len(args.shape) > 2 or min(args.shape) < 1:
            raise UsageError('--shape takes one or two numbers from 1 on')
        size = (args.shape[0], args.shape[-1])
        cfg = read_config(args.config)
        apply_options(cfg, args.cfg_options)
        check_scope(cfg)
        table = Table('model', 'class')
        for head in ('parameters', 'FLOPs', 'of the student'):
            table.add_column(head, justify='right')
        found = dict(models(cfg, args.config))
        first: tuple[float, float] | None = None
        with stages(len(found)) as begin, quiet():
            for name, build in found.items():
                begin(f'counting the {name}')
                model = build()
                counts = complexity(model, size)
                first = first or counts
                ratios = ' / '.join(f'{one / own:.1f}×' for one, own in zip(counts, first))
                table.add_row(name, type(model).__name__, *map(short, counts), ratios)
        print(f'Image of {size[0]}×{size[1]} pixels\n{table_text(table, 120)}')


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the list of operations that mmengine does not count: there are always some."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def models(cfg: Config, path: str) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The models of a config by their names, the student first."""
    if 'model' not in cfg:
        raise UsageError(f'{path} has no `model`')

    def of(config: Any) -> Callable[[], nn.Module]:
        whole = config if isinstance(config, str) else config.to_dict()
        if not isinstance(whole, str) and cfg.get('default_scope'):
            whole.setdefault('_scope_', cfg.default_scope)
        return lambda: build_model(whole, 'model')

    if not is_distilled(cfg):
        yield 'model', of(cfg.model)
        return
    student = cfg.model.student
    if cfg.get('data_preprocessor') is not None:
        student.setdefault('data_preprocessor', cfg.data_preprocessor)
    yield 'student', of(student)
    for name, config in teacher_configs(cfg.model.teacher).items():
        if config.get('config') is None:
            print(f"teacher '{name}' has no config, so it is not counted", file=sys.stderr)
        else:
            yield name if name == 'teacher' else f"teacher '{name}'", of(config['config'])


class Whole(nn.Module):
    """A model that takes images alone, as the counter calls it."""

    def __init__(self, model: nn.Module, samples: list | None) -> None:
        super().__init__()
        self.model, self.samples = model, samples

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs, self.samples, mode='tensor')


def complexity(model: nn.Module, size: tuple[int, int]) -> tuple[float, float]:
    """Return the number of parameters and of operations of a model, for an image (H, W)."""
    if hasattr(model, 'auxiliary_head'):
        model.auxiliary_head = None
    model = revert_sync_batchnorm(model).eval()
    inputs, samples = example_batch(model, torch.device('cpu'))
    inputs = torch.rand(1, inputs.shape[1], *size)
    for sample in samples or ():
        shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sample.set_metainfo(dict.fromkeys(shapes, size))
    try:
        with torch.no_grad():
            found = get_model_complexity_info(
                Whole(model, samples), None, inputs, show_table=False, show_arch=False
            )
    except Exception as error:  # whatever a model raises on an image of this size
        raise UsageError(
            f'{type(model).__name__} does not run on {size[0]}×{size[1]} pixels: '
            f'{first_line(error)}'
        ) from error
    return float(found['params']), float(found['flops'])


def short(count: float) -> str:
    """Write a large number with a unit."""
    for unit, name in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'K')):
        if count >= unit:
            return f'{count / unit:.3g} {name}'
    return f'{count:.0f}'


if __name__ == '__main__':
    main()
