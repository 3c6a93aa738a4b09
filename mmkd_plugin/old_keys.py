"""Keys and names of configs from before mmengine (mmseg 0.x, mmdet 2.x), which are gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from mmkd_plugin.config_text import files_of, is_used
from mmkd_plugin.words import type_name


class Old(NamedTuple):
    """A key that was read before.

    Args:
        now (str): What is read in its place.
        meant (Callable): Whether a value is one of that time, and no variable of the same name.
    """

    now: str
    meant: Callable[[Any], bool]


def _with(*names: str) -> Callable[[Any], bool]:
    """Whether a value is a dict with one of these keys."""
    return lambda value: isinstance(value, Mapping) and bool(value.keys() & set(names))


def _of_data(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    parts = [value.get(key) for key in ('train', 'val', 'test')]
    return _with('samples_per_gpu', 'workers_per_gpu')(value) or any(map(_with('type'), parts))


def _of_runner(value: Any) -> bool:
    named = _with('type')(value) and type_name(value['type']).endswith('Runner')
    return named or _with('max_iters', 'max_epochs')(value)


OLD = {
    'data': Old(
        'train_dataloader=dict(batch_size=..., num_workers=..., dataset=...), and val_dataloader',
        _of_data,
    ),
    'optimizer': Old('optim_wrapper.optimizer', _with('type', 'lr')),
    'optimizer_config': Old(
        'optim_wrapper.clip_grad', _with('grad_clip', 'type', 'cumulative_iters')
    ),
    'fp16': Old("optim_wrapper.type='AmpOptimWrapper', or --amp", _with('loss_scale')),
    'lr_config': Old('param_scheduler', _with('policy')),
    'momentum_config': Old('param_scheduler', _with('policy')),
    'runner': Old('train_cfg', _of_runner),
    'evaluation': Old(
        'train_cfg.val_interval, val_evaluator and default_hooks.checkpoint.save_best',
        _with('interval', 'metric', 'save_best', 'pre_eval'),
    ),
    'checkpoint_config': Old(
        'default_hooks.checkpoint', _with('interval', 'by_epoch', 'max_keep_ckpts')
    ),
    'log_config': Old('default_hooks.logger and visualizer', _with('interval', 'hooks')),
    'dist_params': Old('env_cfg.dist_cfg', _with('backend')),
    'resume_from': Old('the argument --resume', lambda value: isinstance(value, str)),
}


PACKING = 'PackSegInputs of mmseg and PackDetInputs of mmdet do its work'
WANDB = "visualizer.vis_backends=[dict(type='WandbVisBackend')]"
VALIDATION = 'train_cfg.val_interval, val_dataloader and val_evaluator have its settings'

#: Names of classes that are gone, and what to write now.
SUCCESSORS = dict(
    Collect=PACKING,
    DefaultFormatBundle=PACKING,
    DistEvalHook=VALIDATION,
    EvalHook=VALIDATION,
    ExpMomentumEMAHook="now dict(type='EMAHook', ema_type='ExpMomentumEMA')",
    Fp16OptimizerHook="now optim_wrapper.type='AmpOptimWrapper'",
    MMDetWandbHook=f'now {WANDB}',
    OptimizerHook='now optim_wrapper, with clip_grad',
    TensorboardLoggerHook="now visualizer.vis_backends=[dict(type='TensorboardVisBackend')]",
    TextLoggerHook='now LoggerHook, in default_hooks.logger',
    WandbLoggerHook=f'now {WANDB}',
)


def warn_of_old(cfg: Config, options: Iterable[str] = ()) -> None:
    """Names the keys at the top that were read before mmengine, and what is read now.

    A variable of the same name that another key uses is none of them.

    Args:
        cfg (Config): The config of a run.
        options (Iterable[str]): The keys that a command line has set in it. Defaults to ``()``.
    """
    found = list(_old(cfg, {key.partition('.')[0] for key in options}))
    if found:
        each = '; '.join(f'`{key}` has become {OLD[key].now}' for key in found)
        print_log(
            f'The config has keys of mmseg 0.x and mmdet 2.x, which nothing reads: {each}',
            logger='current',
            level=logging.WARNING,
        )


def _old(cfg: Config, options: set[str]) -> Iterator[str]:
    for key, value in cfg.items():
        if key not in OLD or not OLD[key].meant(value) or _is_stock(cfg, key, options):
            continue
        rest = {name: one for name, one in cfg.items() if name != key}
        inside = value.values() if isinstance(value, Mapping) else ()
        if not any(is_used(one, rest) for one in (value, *filter(_with('type'), inside))):
            yield key


def _is_stock(cfg: Config, key: str, options: set[str]) -> bool:
    """Whether a key is as a library has it, or `optim_wrapper` was set after `optimizer`."""
    if key in options:
        return False
    for file in reversed(files_of(cfg)):
        if key == 'optimizer' and file.sets('optim_wrapper'):
            return True
        if file.sets(key):
            return file.is_stock
    return False
