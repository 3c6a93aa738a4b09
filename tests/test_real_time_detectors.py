"""RTMDet and YOLOX with the hooks, pipelines and batch augmentations of their stock configs."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from mmkd_plugin import stack
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.taps.example import example_batch
from mmkd_plugin.training_data import (
    CheckTrainingData,
    DataError,
    Expected,
    check_data,
    watch_data,
)
from tests import stock_models
from tests.runs import DET_CLASSES, Record, assert_same, needs_ops
from tests.stock_models import build, calls_of, cwd, distiller

pytestmark = [pytest.mark.usefixtures('own_globals'), needs_ops]

STOCK = {
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox': 'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
}
SIZE, SMALL = 64, 32  # pixels; the second is that of RTMDet's pipeline for the end
EPOCHS, SWITCH = 3, 2  # of which the last has the other pipeline


def shrunken(value: Any, size: int = SIZE) -> Any:
    """Settings for small images instead of those of 640 pixels, and for six of them."""
    if isinstance(value, dict):
        fixed = dict(
            border=(-size // 2, -size // 2),
            max_cached_images=5,
            random_size_range=(size, 2 * size),
            interval=2,
            switch_pipeline=shrunken(value.get('switch_pipeline'), SMALL),
        )
        return {k: fixed.get(k, shrunken(v, size)) for k, v in value.items()}
    if value in ((640, 640), (1280, 1280)):
        return tuple(size * x // 640 for x in value)
    if isinstance(value, (list, tuple)):
        return type(value)(shrunken(x, size) for x in value)
    return 'BN' if value == 'SyncBN' else value


def narrow(model: dict, width: float) -> dict:
    """A model of one of the two families, narrow and shallow."""
    model = copy.deepcopy(model)
    channels = [int(width * c) for c in (256, 512, 1024)]
    model['backbone'].update(widen_factor=width, deepen_factor=0.167, init_cfg=None)
    model['neck'].update(in_channels=channels, out_channels=channels[0], num_csp_blocks=1)
    model['bbox_head'].update(in_channels=channels[0], feat_channels=channels[0], num_classes=2)
    model['_scope_'] = 'mmdet'
    return model


def recipe(kind: str, data: Path, work_dir: Path, **changes: Any) -> Config:
    """A stock config as the student of a wider model, on tiny data, with one worker that stays."""
    stack.prepare()
    stock = Config.fromfile(stack.shipped_config(STOCK[kind]))
    loader = shrunken(stock.train_dataloader.to_dict())
    loader.update(batch_size=2, num_workers=1, persistent_workers=True, pin_memory=False)
    dataset = loader['dataset'].get('dataset', loader['dataset'])
    dataset.pop('filter_cfg')
    dataset.update(data_root=str(data), ann_file='boxes.json', data_prefix=dict(img='images/'))
    dataset['metainfo'] = dict(classes=DET_CLASSES)
    hooks = shrunken(stock.to_dict()['custom_hooks'])
    for hook in hooks:
        if hook['type'] == 'PipelineSwitchHook':
            hook['switch_epoch'] = SWITCH
        elif hook['type'] == 'YOLOXModeSwitchHook':
            hook['num_last_epochs'] = EPOCHS - SWITCH - 1  # it starts an epoch early
    student = shrunken(stock.model.to_dict())
    settings = dict(
        default_scope='mmdet',
        model=dict(
            _scope_='mmdet',
            type='mmkd_plugin.Distiller',
            student=narrow(student, 0.0625),
            teacher=dict(config=narrow(student, 0.125), checkpoint=None),
            distill=dict(cwd=dict(tap='neck', loss=cwd(loss_weight='auto'))),
        ),
        work_dir=str(work_dir),
        experiment_name=f'{kind}-{work_dir.name}',
        randomness=dict(seed=0),
        train_dataloader=loader,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS),
        optim_wrapper=stock.optim_wrapper,
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    return Config({**settings, **changes})


class Watch(Hook):
    """Notes what backbones of student and teacher are given in each iteration."""

    def __init__(self) -> None:
        self.student: list[Tensor] = []
        self.teacher: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        model = runner.model
        for seen, watched in (
            (self.student, model.student),
            (self.teacher, model.teachers['teacher'].model),
        ):
            watched.backbone.register_forward_pre_hook(
                lambda _, given, seen=seen: seen.append(given[0].clone())
            )


def train(cfg: Config, *hooks: Hook) -> Runner:
    """Runs a config as ``tools/train.py`` does."""
    runner = Runner.from_cfg(cfg)
    watch_data(runner)
    make_resumable(runner)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


@pytest.mark.parametrize(('kind', 'middle'), [('rtmdet', 1), ('yolox', 1)])
def test_trained_as_users_do(kind, middle, data, tmp_path):
    watch, record = Watch(), Record()
    runner = train(recipe(kind, data, tmp_path / 'whole'), watch, record)

    # the teacher sees what the student sees: mixed, resized, and after the switch
    assert len(watch.student) == 3 * EPOCHS
    assert_same(watch.teacher, watch.student)
    sizes = [images.shape[-1] for images in watch.student]
    if kind == 'rtmdet':  # the switch reached the worker
        assert sizes == [SIZE] * 6 + [SMALL] * 3
    else:  # and the student's head
        assert len(set(sizes)) > 1
        assert ['loss_l1' in losses for losses in record.losses] == [False] * 6 + [True] * 3

    # the average is of the student alone, and shares the teacher
    average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
    assert average.teachers['teacher'] is runner.model.teachers['teacher']
    names = [name for name, _ in runner.model.named_parameters()]
    assert [name for name, _ in average.named_parameters()] == names
    saved = read_checkpoint(tmp_path / f'whole/epoch_{EPOCHS}.pth')
    keys = list(build(runner.cfg.model.student).state_dict())
    assert list(saved['state_dict']) == keys
    assert sorted(saved['ema_state_dict']) == sorted([*(f'module.{k}' for k in keys), 'steps'])

    start = dict(load_from=str(tmp_path / f'whole/epoch_{middle}.pth'), resume=True)
    again = Watch()
    train(recipe(kind, data, tmp_path / 'resumed', **start), again)
    resumed = read_checkpoint(tmp_path / f'resumed/epoch_{EPOCHS}.pth')
    assert_same(again.teacher, watch.teacher[3 * middle :])
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(dict(resumed[part]), dict(saved[part]))


def test_batches_padded_to_a_fixed_size():
    """The teacher gets what its own preprocessor would make of the batch, padding included."""
    models = stock_models.mask_rcnn(), stock_models.mask_rcnn(16)
    for model in models:
        _, (sample,) = example_batch(build(model), torch.device('cpu'))
        side = sample.metainfo['img_shape'][0]
        pad = dict(type='BatchFixedSizePad', size=(side + 32, side + 32), pad_mask=True)
        model['data_preprocessor'].update(pad_mask=True, batch_augments=[pad])
    models[1]['data_preprocessor'].update(mean=[9, 8, 7], std=[50, 60, 70], bgr_to_rgb=False)
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)

    def batch() -> dict:
        return dict(inputs=list(images), data_samples=[sample.clone() for _ in images])

    model = distiller(*models, dict(cwd=dict(tap='neck', loss=cwd()))).train()
    teacher = model.teachers['teacher'].model
    calls = calls_of(teacher.backbone)
    model.train_step(batch(), OptimWrapper(torch.optim.SGD(model.parameters(), 0.001)))
    expected = teacher.data_preprocessor(batch(), training=True)['inputs']
    assert expected.shape[-1] == side + 32
    torch.testing.assert_close(calls[-1][0][0], expected)


def test_a_pipeline_for_the_end_is_tried_before_training(data, tmp_path):
    cfg = recipe('rtmdet', data, tmp_path)
    (hook,) = (hook for hook in cfg.custom_hooks if hook.type == 'PipelineSwitchHook')
    stage, runner = hook.switch_pipeline, SimpleNamespace(model=None, val_loop=None)

    def check(pipeline: list) -> None:
        switch = SimpleNamespace(switch_pipeline=pipeline)
        runner.hooks, runner.train_dataloader = [switch], SimpleNamespace(dataset=dataset)
        runner.model = build(cfg.model.student)
        CheckTrainingData(1).before_train(runner)

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        check(stage)
        with pytest.raises(DataError, match=r'switch_pipeline: .*the pipeline gives no `inputs`'):
            check(stage[:-1])
        with pytest.raises(ValueError, match=r"switch_pipeline\[0\].type: there is no 'LoadImage'"):
            check([dict(type='LoadImage'), *stage[1:]])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda steps: steps, None),
        (lambda steps: steps[:-1], r'images/0\.png: the pipeline gives no `inputs`'),
        (lambda steps: [dict(type='RandomErasing', n_patches=1, ratio=1, img_border_value=(1, 2)),
                        *steps],
         r'images/0\.png: the pipeline of MultiImageMixDataset failed: '),
    ],
    ids=['good', 'not packed', 'fails'],
)  # fmt: skip
def test_a_pipeline_around_a_data_set_is_checked(change, message, data, tmp_path):
    cfg = recipe('yolox', data, tmp_path).train_dataloader.dataset
    cfg.pipeline = change(cfg.pipeline)
    expected = Expected(2, None, 'bbox_head')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg)
        if message is None:
            check_data(dataset, expected)
            return
        with pytest.raises(DataError, match=message):
            check_data(dataset, expected)
