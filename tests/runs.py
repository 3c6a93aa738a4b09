"""Tiny data sets on disk and real runs on them, for the tests."""

from __future__ import annotations

import copy
import itertools
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmkd_plugin.cli import build_runner
from mmkd_plugin.running.hook import make_resumable
from tests.stock_models import build

try:
    import mmcv.ops  # noqa: F401

    HAS_OPS = True
except ImportError:
    HAS_OPS = False

needs_ops = pytest.mark.skipif(not HAS_OPS, reason='mmcv has no compiled ops')

SEG_CLASSES, DET_CLASSES = ['ground', 'box', 'disc'], ('box', 'disc')

_numbers = itertools.count()


def make_data(root: Path) -> None:
    """Writes six images with a box and a disc each, their label maps and their boxes."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for folder in ('images', 'masks'):
        (root / folder).mkdir()
    for i in range(6):
        mask = np.zeros((64, 64), np.uint8)
        x, y = (int(v) for v in rng.integers(4, 20, 2))
        cv2.rectangle(mask, (x, y), (x + 15, y + 15), 1, -1)
        cv2.circle(mask, (x + 30, y + 30), 8, 2, -1)
        image = np.array([[40, 40, 40], [60, 200, 60], [200, 60, 60]], np.uint8)[mask]
        image += rng.integers(0, 30, image.shape, dtype=np.uint8)
        cv2.imwrite(str(root / f'images/{i}.png'), image)
        cv2.imwrite(str(root / f'masks/{i}.png'), mask)
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        for category, box in ((1, [x, y, 16, 16]), (2, [x + 22, y + 22, 17, 17])):
            area = box[2] * box[3]
            boxes.append(
                dict(
                    id=len(boxes), image_id=i, category_id=category, bbox=box, area=area, iscrowd=0
                )
            )
    categories = [dict(id=1, name='box'), dict(id=2, name='disc')]
    coco = dict(images=images, annotations=boxes, categories=categories)
    (root / 'boxes.json').write_text(json.dumps(coco))


def dataset_of(scope: str, augment: bool = False) -> dict:
    """The training set of what :func:`make_data` filled, its ``data_root`` left out."""
    changes = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
    load, changes = dict(type='LoadImageFromFile'), changes if augment else []
    if scope == 'mmseg':
        pipeline = [load, dict(type='LoadAnnotations'), *changes, dict(type='PackSegInputs')]
        return dict(
            type='BaseSegDataset',
            img_suffix='.png',
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            metainfo=dict(classes=SEG_CLASSES, palette=[[0, 0, 0], [0, 255, 0], [0, 0, 255]]),
            pipeline=pipeline,
        )
    boxes = dict(type='LoadAnnotations', with_bbox=True)
    return dict(
        type='CocoDataset',
        ann_file='boxes.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=DET_CLASSES),
        pipeline=[load, boxes, *changes, dict(type='PackDetInputs')],
    )


def config(
    model: dict,
    data: Path,
    work_dir: Path,
    length: int,
    *,
    by_epoch: bool = False,
    save_every: int = 0,
    augment: bool = False,
    workers: int = 0,
    **changes: Any,
) -> Config:
    """A config that trains one of :mod:`tests.stock_models`, or a Distiller of two, on tiny data.

    Args:
        model (dict): With ``_scope_``, which also chooses the data set.
        data (Path): What :func:`make_data` filled.
        work_dir (Path): Where logs and checkpoints go.
        length (int): Iterations, or epochs of three iterations.
        by_epoch (bool): Whether the loop counts epochs.
        save_every (int): Interval of checkpoints; 0 is one at the end.
        augment (bool): Whether images are changed at random.
        workers (int): Processes that load data.
        **changes (Any): Other keys of the config.
    """
    scope = model['_scope_']
    loop = (
        dict(type='EpochBasedTrainLoop', max_epochs=length)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=length)
    )
    settings = dict(
        default_scope=scope,
        model=model,
        work_dir=str(work_dir),
        experiment_name=f'test-{next(_numbers)}',
        randomness=dict(seed=0),
        train_dataloader=dict(
            batch_size=2,
            num_workers=workers,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
            dataset=dict(data_root=str(data), **dataset_of(scope, augment)),
        ),
        train_cfg=loop,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[dict(type='PolyLR', power=0.9, begin=0, end=length, by_epoch=by_epoch)],
        log_processor=dict(by_epoch=by_epoch),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', by_epoch=by_epoch, interval=save_every or length
            ),
        ),
    )
    return Config({**settings, **changes})


def validated(cfg: Config, data: Path) -> Config:
    """Adds a validation on the images of the training, resized instead of changed at random."""
    dataset = cfg.train_dataloader.dataset
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    test = [dataset.pipeline[0], resize, dataset.pipeline[1], dataset.pipeline[-1]]
    cfg.val_dataloader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, pipeline=test, test_mode=True),
    )
    cfg.val_cfg = dict(type='ValLoop')
    cfg.val_evaluator = (
        dict(type='IoUMetric')
        if cfg.default_scope == 'mmseg'
        else dict(type='CocoMetric', ann_file=str(data / 'boxes.json'))
    )
    return cfg


def train(cfg: Config, *hooks: Hook, resumable: bool = False) -> Runner:
    """Runs a config in this process, with the random state kept as ``tools/train.py`` keeps it."""
    runner = build_runner(cfg)
    if resumable:
        make_resumable(runner)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


class Record(Hook):
    """Notes what a run started from, what it was fed and what it logged.

    Attributes:
        start (dict): State dict of the model before the first iteration.
        inputs (list): Images of each iteration, as they come from the data loader.
        losses (list): What was logged in each iteration.
    """

    def __init__(self) -> None:
        self.start: dict[str, Tensor] | None = None
        self.inputs: list[list[Tensor]] = []
        self.losses: list[dict[str, float]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.start is None:
            self.start = copy.deepcopy(runner.model.state_dict())
        self.inputs.append([image.clone() for image in data_batch['inputs']])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(
            {key: float(torch.as_tensor(value).detach()) for key, value in outputs.items()}
        )


def save_weights(model: dict, file: Path, seed: int = 7) -> str:
    """Saves random weights of a model; returns the path."""
    torch.manual_seed(seed)
    torch.save(dict(state_dict=build(model).state_dict()), file)
    return str(file)


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.file}',)


def assert_same(ours: Any, theirs: Any, where: str = '') -> None:
    """Compares nested dicts and lists of tensors and values, bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f'{where}/{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f'{where}/{i}')
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where
