"""A resumed run is the run that never ended, bit for bit, whatever is drawn at random."""

from __future__ import annotations

import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import RandomSampler

from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.running.randomness import SeededBatch
from mmkd_plugin.seeds import seed_with
from mmkd_plugin.stack import safe_loading
from tests.ddp import DISTRIBUTED, forked, in_two_processes
from tests.running.tiny import tiny_run
from tests.runs import assert_same, config, make_data, needs_ops
from tests.stock_models import fcn, retinanet

pytestmark = pytest.mark.usefixtures('own_globals')


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """Idle workers of a finished run are ended at once; torch gives each of them five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.05)


def outcome(file: Path) -> dict[str, Any]:
    """What a run has come to: weights, moments of the optimizer, schedules."""
    content = read_checkpoint(file)
    return {
        key: dict(content[key]) if key == 'state_dict' else content[key]
        for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
        if key in content
    }


class Shuffled(RandomSampler):
    """An order that depends on the random state at the start of an epoch."""

    def __init__(self, dataset: Any, shuffle: bool, seed: int) -> None:
        super().__init__(dataset)


RUNS = {
    'iterations': (dict(), 'iter_2.pth', 'iter_6.pth'),
    'after validation': (dict(), 'iter_4.pth', 'iter_6.pth'),
    'workers': (dict(workers=2), 'iter_4.pth', 'iter_6.pth'),
    'persistent workers': (dict(workers=2, persistent=True), 'iter_2.pth', 'iter_6.pth'),
    'averaged weights': (dict(ema=True), 'iter_2.pth', 'iter_6.pth'),
    'in the middle of accumulated gradients': (dict(accumulate=3), 'iter_2.pth', 'iter_6.pth'),
    'the last accumulated gradients': (dict(accumulate=4), 'iter_4.pth', 'iter_6.pth'),
    'epochs': (dict(by_epoch=True), 'epoch_1.pth', 'epoch_3.pth'),
    'epochs, workers': (dict(by_epoch=True, workers=2), 'epoch_1.pth', 'epoch_3.pth'),
    'epochs, persistent workers': (
        dict(by_epoch=True, workers=2, persistent=True),
        'epoch_2.pth',
        'epoch_3.pth',
    ),
    'numbers kept in the order in which they came': (
        dict(keep=((3, False), (2, False))),
        'iter_4.pth',
        'iter_6.pth',
    ),
    'numbers kept at random, workers': (
        dict(keep=((3, True),), workers=2),
        'iter_2.pth',
        'iter_6.pth',
    ),
    'numbers kept, epochs, persistent workers': (
        dict(keep=((3, True), (2, False)), by_epoch=True, workers=2, persistent=True),
        'epoch_2.pth',
        'epoch_3.pth',
    ),
    'numbers kept, epochs, new workers': (
        dict(keep=((3, False),), by_epoch=True, workers=2),
        'epoch_1.pth',
        'epoch_3.pth',
    ),
    "torch's own sampler": (
        dict(by_epoch=True, sampler=Shuffled),
        'epoch_1.pth',
        'epoch_3.pth',
    ),
}


@pytest.mark.parametrize(('settings', 'middle', 'end'), RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_run_that_never_ended(settings, middle, end, tmp_path):
    tiny_run(tmp_path / 'whole', noise=True, **settings).train()
    start = dict(load_from=str(tmp_path / 'whole' / middle), resume=True)
    tiny_run(tmp_path / 'resumed', noise=True, **settings, **start).train()
    assert_same(outcome(tmp_path / 'resumed' / end), outcome(tmp_path / 'whole' / end))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('middle', [1, 2, 3, 5])
def test_a_run_of_epochs_goes_on_within_one(middle, workers, tmp_path):
    settings = dict(noise=True, by_epoch=True, workers=workers)
    saves = dict(save_iterations=True, interval=1)
    tiny_run(tmp_path / 'whole', **settings, **saves).train()
    start = dict(load_from=str(tmp_path / f'whole/iter_{middle}.pth'), resume=True)
    tiny_run(tmp_path / 'resumed', **settings, **saves, **start).train()
    ours, theirs = (outcome(tmp_path / f'{run}/iter_6.pth') for run in ('resumed', 'whole'))
    assert_same(ours, theirs)
    assert not (tmp_path / 'resumed/iter_7.pth').exists()


def test_images_and_iterations_draw_different_numbers(tmp_path):
    drawn: list[float] = []

    def draw(batch: list) -> None:
        for _ in batch:
            drawn.extend((random.random(), float(np.random.rand()), float(torch.rand(1))))

    draw(SeededBatch([4, 4], (0, 0, 0, 7)))
    draw(SeededBatch([4, 4], (0, 0, 0, 8)))
    draw(SeededBatch([4, 4], (0, 0, 1, 7)))  # of another process
    assert len({round(value, 6) for value in drawn}) == len(drawn) == 18
    again, drawn[:] = drawn[:6], []
    draw(SeededBatch([1, 2], (0, 0, 0, 7)))  # whatever the image
    assert drawn == again


def test_sending_a_batch_to_a_worker_seeds_nothing_here():
    batch = SeededBatch([3, 5], (1, 2))
    seed_with(0)
    expected = random.random(), float(torch.rand(1))
    seed_with(0)
    sent = pickle.loads(pickle.dumps(batch))
    assert (random.random(), float(torch.rand(1))) == expected
    assert type(sent) is SeededBatch and sent.key == (1, 2) and list(sent) == [3, 5]


@pytest.mark.parametrize('workers', [0, 2])
def test_the_order_of_images_stays(workers, tmp_path):
    orders = []
    for ours in (True, False):
        runner = tiny_run(tmp_path / str(ours), workers=workers, resumable=ours)
        batches = iter(runner.build_dataloader(runner._train_dataloader, seed=runner.seed))
        orders.append([torch.cat(next(batches)['inputs']).tolist() for _ in range(5)])
    assert orders[0] == orders[1]


# Real models --------------------------------------------------------------------------------------

CHANGES = {
    'mmseg': [
        dict(type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
    ],
    'mmdet': [
        dict(type='RandomResize', scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(56, 56)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
    ],
}


def real_run(scope: str, data: Path, work_dir: Path, by_epoch: bool, workers: int) -> Config:
    """A config with everything that is drawn at random in stock recipes."""
    model = fcn(classes=3) if scope == 'mmseg' else retinanet(classes=2)
    if scope == 'mmseg':
        model['decode_head']['dropout_ratio'] = 0.3
    cfg = config(
        model, data, work_dir, 2 if by_epoch else 5, by_epoch=by_epoch, save_every=1,
        workers=workers,
    )  # fmt: skip
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [*pipeline[:-1], *CHANGES[scope], pipeline[-1]]
    return cfg


def run(cfg: Config) -> None:
    runner = Runner.from_cfg(cfg)
    make_resumable(runner)
    runner.train()


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    make_data(folder)
    return folder


@needs_ops
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [False, True], ids=['iterations', 'epochs'])
@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_stock_models_with_random_transforms(scope, by_epoch, workers, data, tmp_path):
    middle, end = ('epoch_1.pth', 'epoch_2.pth') if by_epoch else ('iter_3.pth', 'iter_5.pth')
    run(real_run(scope, data, tmp_path / 'whole', by_epoch, workers))
    cfg = real_run(scope, data, tmp_path / 'resumed', by_epoch, workers)
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / middle), True
    run(cfg)
    assert_same(outcome(tmp_path / 'resumed' / end), outcome(tmp_path / 'whole' / end))


def run_in_rank(rank: int, cfg: Config) -> None:
    with safe_loading():
        run(cfg)


def test_two_processes(data, tmp_path):
    for name, start in (('whole', None), ('resumed', tmp_path / 'whole/iter_3.pth')):
        cfg = real_run('mmseg', data, tmp_path / name, False, 0)
        if start is not None:
            cfg.load_from, cfg.resume = str(start), True
        in_two_processes(run_in_rank, cfg)
    assert read_checkpoint(tmp_path / 'whole/iter_3.pth')['meta']['mmkd_run']['processes'] == 2
    assert_same(outcome(tmp_path / 'resumed/iter_5.pth'), outcome(tmp_path / 'whole/iter_5.pth'))


def test_accumulated_gradients_of_two_processes(data, tmp_path):
    def work(rank: int, name: str) -> None:
        cfg = real_run('mmseg', data, tmp_path / name, False, 0)
        cfg.optim_wrapper.accumulative_counts = 2
        cfg.merge_from_dict(DISTRIBUTED)
        if name == 'resumed':
            cfg.load_from, cfg.resume = str(tmp_path / 'whole/iter_3.pth'), True
        run(cfg)

    for name in ('whole', 'resumed'):
        forked(partial(work, name=name), tmp_path)
    ours, theirs = (outcome(tmp_path / f'{name}/iter_5.pth') for name in ('resumed', 'whole'))
    assert_same(ours, theirs)
    start = read_checkpoint(tmp_path / 'whole/iter_3.pth')['state_dict']
    assert not torch.equal(
        start['decode_head.conv_seg.weight'], theirs['state_dict']['decode_head.conv_seg.weight']
    )
