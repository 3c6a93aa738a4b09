"""Runs with images that have no labels, as tools/train.py does them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.run_config import check_run
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.training_data import watch_data
from mmkd_plugin.unlabelled.pipelines import complete
from tests.runs import Record, config
from tests.stock_models import fcn, retinanet

MORE = 5
STUDENTS = {'mmseg': lambda: fcn(classes=3), 'mmdet': lambda: retinanet(classes=2)}
TAPS = {'mmseg': 'decode_head.conv_seg', 'mmdet': 'neck'}
CHANGES = {
    'mmseg': [dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75)],
    'mmdet': [
        dict(type='RandomCrop', crop_size=(56, 56)),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),
    ],
}
RANDOM = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]


def make_more(folder: Path) -> str:
    """Writes images without labels, one of them in a folder below; returns the folder."""
    rng = np.random.default_rng(1)
    (folder / 'below').mkdir(parents=True)
    for number in range(MORE):
        image = rng.integers(0, 255, (64, 72, 3), dtype=np.uint8)
        image[8:40, 8:40] = 40 * number
        name = f'{number}.jpg' if number else 'below/first.PNG'
        cv2.imwrite(str(folder / name), image)
    return str(folder)


def distilled(scope: str, unlabelled: dict | None, **changes: Any) -> dict:
    """A Distiller of two tiny models with a term that needs no labels."""
    loss = dict(type='mmkd_plugin.ChannelWiseLoss', tau=1)
    settings = dict(
        _scope_=scope,
        type='mmkd_plugin.Distiller',
        student=STUDENTS[scope](),
        teacher=dict(config=STUDENTS[scope](), checkpoint=None),
        distill=dict(cwd=dict(tap=TAPS[scope], loss=loss)),
        unlabelled=unlabelled,
    )
    return {**settings, **changes}


def run_config(model: dict, data: Path, work_dir: Path, length: int = 3, **changes: Any) -> Config:
    """The config of a run whose pipeline looks at labels and draws at random."""
    cfg = config(model, data, work_dir, length, **changes)
    pipeline = cfg.train_dataloader.dataset.pipeline
    steps = [*CHANGES[model['_scope_']], *RANDOM]
    cfg.train_dataloader.dataset.pipeline = [*pipeline[:-1], *steps, pipeline[-1]]
    return cfg


def build(cfg: Config) -> Runner:
    """A runner that is ready to train."""
    check_run(cfg)
    complete(cfg)
    wire(cfg)
    runner = Runner.from_cfg(cfg)
    watch_data(runner)
    make_resumable(runner)
    return runner


class Seen(Record):
    """Notes the images without labels, too.

    Attributes:
        unlabelled (list): Their images in each iteration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unlabelled: list[list[Tensor]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        super().before_train_iter(runner, batch_idx, data_batch)
        if isinstance(data_batch.get('unlabelled'), dict):
            self.unlabelled.append([x.clone() for x in data_batch['unlabelled']['inputs']])


def train(cfg: Config, *hooks: Hook) -> Seen:
    """Trains a config, and tells what it saw."""
    runner, seen = build(cfg), Seen()
    for hook in (seen, *hooks):
        runner.register_hook(hook)
    runner.train()
    return seen
