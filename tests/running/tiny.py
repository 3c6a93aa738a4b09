"""The smallest run that trains, validates and saves."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmkd_plugin.running.hook import make_resumable

_numbers = itertools.count()


class Mixing:
    """A transform that keeps numbers, and adds one of them to each."""

    def __init__(self, max_cached_images: int, random_pop: bool) -> None:
        self.max_cached_images, self.random_pop = max_cached_images, random_pop
        self.results_cache: list[Tensor] = []

    def __call__(self, number: Tensor) -> Tensor:
        self.results_cache.append(number)
        if len(self.results_cache) > self.max_cached_images:
            at = random.randrange(len(self.results_cache)) if self.random_pop else 0
            self.results_cache.pop(at)
        return number + random.choice(self.results_cache)


class Numbers(Dataset):
    """Eight numbers; with ``noise``, each with something random from three generators.

    ``pipeline`` has further transforms.
    """

    metainfo: ClassVar[dict[str, Any]] = {}

    def __init__(self, noise: bool = False, *transforms: Mixing) -> None:
        self.noise = noise
        self.pipeline = Compose(transforms)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = torch.tensor([index / 8])
        if self.noise:
            number = number + random.random() + float(np.random.rand()) + torch.rand(1)
        return dict(inputs=self.pipeline(number))


class Line(BaseModel):
    """A straight line through nothing; with ``noise``, it drops inputs at random."""

    def __init__(self, noise: bool = False) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.drop = nn.Dropout(0.5 if noise else 0.0)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        outputs = self.weight(
            self.drop(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        )
        return dict(loss=outputs.square().mean()) if mode == 'loss' else [outputs]


class Score(BaseMetric):
    """Better each time."""

    count = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        type(self).count += 1
        return dict(score=float(self.count))


def tiny_run(
    work_dir: Path,
    noise: bool = False,
    workers: int = 0,
    persistent: bool = False,
    by_epoch: bool = False,
    sampler: str | type | None = None,
    custom_hooks: list | None = None,
    load_from: str | None = None,
    resume: bool = False,
    length: int = 6,
    ema: bool = False,
    save_iterations: bool = False,
    resumable: bool = True,
    accumulate: int = 1,
    keep: tuple[tuple[int, bool], ...] = (),
    **hook: Any,
) -> Runner:
    """A run of six iterations (or three epochs of two) that saves every two of them."""
    loader = dict(num_workers=workers, persistent_workers=persistent)
    sampler = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
    train_cfg = (
        dict(by_epoch=True, max_epochs=length // 2, val_interval=1)
        if by_epoch
        else dict(by_epoch=False, max_iters=length, val_interval=3)
    )
    with mock.patch('mmengine.runner.runner.collect_env', dict):  # asks a compiler each time
        runner = Runner(
            model=dict(type=Line, noise=noise),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=4,
                dataset=Numbers(noise, *(Mixing(*one) for one in keep)),
                sampler=dict(type=sampler, shuffle=True),
                **loader,
            ),
            val_dataloader=dict(
                batch_size=4,
                dataset=Numbers(),
                sampler=dict(type='DefaultSampler', shuffle=False),
                **loader,
            ),
            train_cfg=train_cfg,
            val_cfg=dict(),
            val_evaluator=[Score()],
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=accumulate
            ),
            default_hooks=dict(
                checkpoint=dict(
                    type=CheckpointHook,
                    by_epoch=by_epoch and not save_iterations,
                    **{'interval': 1 if by_epoch else 2, 'rule': 'greater', **hook},
                ),
            ),
            custom_hooks=custom_hooks or ([dict(type='EMAHook', momentum=0.5)] if ema else []),
            load_from=load_from,
            resume=resume and load_from is not None,
            randomness=dict(seed=0),
            experiment_name=f'tiny-{next(_numbers)}',
            log_level='ERROR',
            default_scope='mmengine',
            cfg=dict(),
        )
    if resumable:
        make_resumable(runner)
    return runner
