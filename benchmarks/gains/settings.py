"""The config of a run: a recipe with its seed, weight, length and teacher filled in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from benchmarks.gains.split import keep_labels
from benchmarks.gains.tables import trained_teachers
from mmkd_plugin.cli import is_distilled, read_config


def run_config(
    config: Path,
    *,
    seed: int,
    length: float = 1.0,
    weight: float | str | None = None,
    teachers: Sequence[tuple[Path, Path]] = (),
    labels: float | None = None,
    cache: Path | None = None,
    augment: Callable[[Config], None] | None = None,
) -> Config:
    """Fills in what differs from run to run.

    A worker process makes the batches, so what the model draws at random does not change them.
    Validation comes once, at the end.

    Args:
        config (Path): A recipe, or a plain config.
        seed (int): The seed.
        length (float): What all lengths are multiplied by. Defaults to 1.
        weight (float | str, optional): The loss weight of each term: a number, ``'auto'``,
            ``'auto:0.3'``, or ``'recipe'`` for that of the recipe. Defaults to None: there is none.
        teachers (Sequence[tuple[Path, Path]]): Config and checkpoint of each trained teacher.
            Defaults to none: there are none, or they are the recipe's.
        labels (float, optional): The part of the training images that keep their labels. Defaults
            to None: as the config says.
        cache (Path, optional): The cache that the one teacher is read from. Defaults to None: it
            runs.
        augment (Callable, optional): Changes the train pipeline. Defaults to None: as it is.

    Raises:
        ValueError: If a word for the weight is unknown.
    """
    cfg = read_config(str(config))
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    for one, teacher in zip(trained_teachers(cfg.model), teachers):
        one['config'], one['checkpoint'] = map(str, teacher)
        if cache is not None:
            one.update(type='mmkd_plugin.CachedTeacher', path=str(cache))
    if augment is not None:
        augment(cfg)
    if weight is not None and is_distilled(cfg):
        for line in cfg.model.distill.values():
            set_weight(line.loss, weight)
    if length != 1:
        stretch(cfg, length)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    if labels is not None:
        keep_labels(cfg, labels, seed)
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
    for name in ('val_dataloader', 'test_dataloader'):
        cfg[name].update(num_workers=0, persistent_workers=False)
    return cfg


def set_weight(loss: dict, weight: float | str) -> None:
    """Gives a loss another weight.

    Args:
        loss (dict): Config of the loss, changed in place.
        weight (float | str): A number, which each map gets if the loss has a list of them,
            ``'auto'``, ``'auto:<share>'``, or ``'recipe'``, which changes nothing.

    Raises:
        ValueError: If the word is unknown.

    Examples:
        >>> loss = dict(type='mmkd_plugin.OverhaulLoss', loss_weight=[1, 2])
        >>> set_weight(loss, 3)
        >>> loss['loss_weight']
        [3, 3]
        >>> set_weight(loss, 'auto:0.5')
        >>> loss['loss_weight']
        {'auto': 0.5}
    """
    if weight == 'recipe':
        return
    if isinstance(weight, str):
        word, _, share = weight.partition(':')
        if word != 'auto':
            raise ValueError(
                f"a weight is a number, 'auto', 'auto:0.3' or 'recipe', not {weight!r}"
            )
        loss['loss_weight'] = dict(auto=float(share)) if share else 'auto'
    else:
        now = loss.get('loss_weight')
        loss['loss_weight'] = [weight] * len(now) if isinstance(now, (list, tuple)) else weight


def stretch(cfg: Config, factor: float) -> None:
    """Makes a run longer or shorter, with the schedules of learning rate and terms.

    Args:
        cfg (Config): A config that counts iterations, changed in place.
        factor (float): What all lengths are multiplied by; none becomes shorter than 1.
    """
    stages = [cfg.train_cfg, (cfg.get('paraphraser') or {}).get('train_cfg') or {}]
    for stage in stages:
        _scale(stage, ('max_iters',), factor)
    for one in cfg.get('param_scheduler') or []:
        if not one.get('by_epoch', True):
            _scale(one, ('begin', 'end', 'T_max', 'milestones'), factor)
    hook = cfg.default_hooks.checkpoint
    hook.interval = min(hook.interval, cfg.train_cfg.max_iters)
    if is_distilled(cfg):
        for line in (cfg.model.get('task') or {}, *cfg.model.distill.values()):
            schedule = line.get('schedule') or {}
            if not schedule.get('by_epoch'):
                _scale(schedule, ('start', 'stop', 'ramp'), factor)


def _scale(config: dict, keys: tuple[str, ...], factor: float) -> None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, (list, tuple)):
            config[key] = [max(1, round(one * factor)) for one in value]
        elif value:
            config[key] = max(1, round(value * factor))


def digest(cfg: Config) -> str:
    """A short name of all settings, for the folder of a run."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_split(cfg: Config) -> str:
    """``'test'`` if the config tests on other data than it validates on, else ``'val'``."""
    return 'val' if _same(cfg.test_dataloader.dataset, cfg.val_dataloader.dataset) else 'test'


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(
        other, sort_keys=True, default=str
    )
