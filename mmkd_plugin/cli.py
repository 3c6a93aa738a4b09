"""What the command-line tools share."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmkd_plugin.building import check_keys
from mmkd_plugin.cache.wiring import unwire
from mmkd_plugin.checkpoint import nearest_names
from mmkd_plugin.registry import METRICS
from mmkd_plugin.stack import prepare, shipped_config
from mmkd_plugin.teachers.configs import teacher_configs


class UsageError(Exception):
    """A mistake in what the user typed; the tools print it as one line."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line, instead of a traceback, for errors meant for the user.

    Those are :class:`UsageError`, and what this package raises about configs and files.
    """
    try:
        yield
    except UsageError as error:
        message = str(error)
    except (OSError, ValueError) as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        module = '' if traceback is None else traceback.tb_frame.f_globals.get('__name__', '')
        if not module.startswith('mmkd_plugin'):
            raise
        message = str(error)
    else:
        return
    raise SystemExit(f'{Path(sys.argv[0]).name}: error: {message}')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, as OpenMMLab's tools have it."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change settings of the config: key.sub=1 list="[a,b]" (no white space inside)',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common with OpenMMLab's tools."""
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; default: the `work_dir` of the config, else '
        './work_dirs/<name of the config>',
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # Launchers of torch 1 and of torch 2 spell it differently.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name, with the settings that they change.

    Args:
        args (argparse.Namespace): With ``config``, and the arguments that
            :func:`add_run_arguments` adds.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('./work_dirs', Path(cfg.filename).stem))
    return cfg


def read_config(name: str) -> Config:
    """Read a config by its path, or by ``package::path`` one that an OpenMMLab library brings.

    Raises:
        UsageError: If it, or a config that it builds on, does not exist; with the nearest names.
    """
    prepare()
    path = shipped_config(name) if '::' in name else Path(name)
    if not path.is_file():
        raise UsageError(f'no config at {name}{nearest_names(path, [".py"])}')
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise UsageError(f'{name} builds on a config that does not exist: {error}') from error


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def is_distilled(cfg: Config) -> bool:
    """Whether the model of a config is a Distiller."""
    kind = cfg.model.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'Distiller' and 'student' in cfg.model


def use_student(cfg: Config) -> None:
    """Turn a distilled config into that of its student, in place; leave any other as it is.

    The data preprocessor moves into the model when the config has it at the top, because only the
    runner looks for it there.
    """
    if not is_distilled(cfg):
        return
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    unwire(cfg)
    cfg.model = cfg.model.student
    if preprocessor is not None:
        cfg.model.setdefault('data_preprocessor', preprocessor)
    hooks = cfg.get('custom_hooks')
    if hooks:
        cfg.custom_hooks = [hook for hook in hooks if not is_own(hook)]
    print_log('The config distils: using its student alone.', logger='current')


def metrics_of(cfg: Config) -> list:
    """The configs of the metrics of the test."""
    metrics = cfg.get('test_evaluator')
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    return [metric for metric in metrics if metric is not None]


def complete_metrics(cfg: Config, distilled: ConfigDict | None) -> None:
    """Give this package's metrics of the test what the config says elsewhere, in place.

    Args:
        cfg (Config): With ``test_evaluator``.
        distilled (ConfigDict, optional): The Distiller that the config trains; a metric that wants
            a teacher and names none gets that of it.

    Raises:
        UsageError: If a metric, or a key of it, does not exist, or its teacher is not to be told.
    """
    own = [metric for metric in metrics_of(cfg) if is_own(metric)]
    for metric in own:
        kind = METRICS.get(metric.type)
        if kind is None:
            known = METRICS.module_dict
            close = get_close_matches(metric.type.partition('.')[2], known, n=1)
            hint = f'; did you mean mmkd_plugin.{close[0]}?' if close else ''
            raise UsageError(f'there is no metric {metric.type}{hint} (known: {", ".join(known)})')
        keys = inspect.signature(kind).parameters
        check_keys(f'the metric {metric.type}', metric, ('type', *keys))
        if 'teacher' in keys and not isinstance(metric.get('teacher'), dict):
            metric.teacher = _teacher_of(distilled, metric)
        if kind.__name__ == 'ExplanationLocalization':
            _check_boxes_are_as_loaded(cfg)
    if own:
        hooks = cfg.get('custom_hooks') or []
        cfg.custom_hooks = [*hooks, dict(type='mmkd_plugin.ModelForMetrics')]


def _check_boxes_are_as_loaded(cfg: Config) -> None:
    """Boxes that are loaded before a resize follow it; predictions go back to the original size."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    steps = [str(step.type) for step in dataset.get('pipeline') or []]
    if cfg.get('default_scope') == 'mmdet' and 'LoadAnnotations' in steps:
        resized = [step for step in steps[steps.index('LoadAnnotations') :] if 'Resize' in step]
        if resized:
            raise UsageError(
                'mmkd_plugin.ExplanationLocalization needs boxes in pixels of the original image: '
                f'in the pipeline of the test data, LoadAnnotations belongs behind {resized[-1]}, '
                'as in the stock configs'
            )


def _teacher_of(distilled: ConfigDict | None, metric: ConfigDict) -> dict:
    """The trained teacher of a distilled config: its only one, or the one a metric names."""
    name = metric.get('teacher')
    if distilled is None:
        raise UsageError(
            f"{metric.type} needs a teacher: teacher=dict(config='...', checkpoint='...'), or a "
            'config that distils'
        )
    every = {n: c for n, c in teacher_configs(distilled.teacher).items() if 'type' not in c}
    if name is None and len(every) == 1:
        (name,) = every
    if name not in every:
        raise UsageError(
            f'{metric.type} needs one teacher that is trained and can run alone: '
            + (
                f'teacher={next(iter(every))!r} (there are {", ".join(every)})'
                if every
                else "teacher=dict(config='...', checkpoint='...')"
            )
        )
    return every[name]


def is_own(config: ConfigDict | Any) -> bool:
    """Whether the config of a hook or a metric names one of this package."""
    return isinstance(config, dict) and str(config.get('type')).startswith('mmkd_plugin.')
