"""Drawn views: the teacher's own maps on augmented images, drawn again in training."""

from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.dataset import sampler as sampling
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

from mmkd_plugin.cache import drawn
from mmkd_plugin.cache.drawn import DrawnViews, ViewsInTurn, digest_of, draw, drawn_from
from mmkd_plugin.cache.store import CacheError, TeacherCache, close, of_view
from mmkd_plugin.cache.wiring import unwire, wire
from mmkd_plugin.cli import UsageError
from mmkd_plugin.foreign import is_ours
from mmkd_plugin.registry import TRANSFORMS
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.taps import Tap, as_list
from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.online import OnlineTeacher
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.runs import (
    Record,
    assert_same,
    config,
    make_data,
    needs_ops,
    save_weights,
    train,
)
from tests.teaching import prepare, taught

pytestmark = pytest.mark.usefixtures('own_globals')

TAPS = dict(mmseg='decode_head.conv_seg', mmdet='neck')
ZOO = [
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
]
MOSAIC = [
    dict(type='Mosaic', img_scale=(64, 64), pad_val=114.0),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-32, -32)),
    dict(type='MixUp', img_scale=(64, 64), ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
]
KINDS = ['mmseg', pytest.param('mmdet', marks=needs_ops), pytest.param('mosaic', marks=needs_ops)]


def model_of(scope: str, width: int = 8) -> dict:
    if scope == 'mmseg':
        return stock_models.pspnet(width, 3, size=(64, 64))
    return stock_models.retinanet(width, 2)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root


@pytest.fixture(scope='module')
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('teachers')
    return {s: save_weights(model_of(s, 16), folder / f'{s}.pth') for s in ('mmseg', 'mmdet')}


def recipe(kind: str, data: Path, teachers: dict, **changes: Any) -> Config:
    """A distilled run with the augmentation of the zoo, or with mosaics."""
    scope = 'mmdet' if kind == 'mosaic' else kind
    loss = dict(type='mmkd_plugin.PixelWiseLoss') if scope == 'mmseg' else stock_models.cwd(tau=1)
    cfg = config(
        dict(
            _scope_=scope,
            type='mmkd_plugin.Distiller',
            student=model_of(scope),
            teacher=dict(config=model_of(scope, 16), checkpoint=teachers[scope]),
            distill=dict(term=dict(tap=TAPS[scope], loss=loss)),
        ),
        data,
        data / 'work_dir',
        2,
        **changes,
    )
    dataset = cfg.train_dataloader.dataset
    loaders, pack = dataset.pipeline[:2], dataset.pipeline[-1]
    if kind == 'mosaic':
        dataset.pipeline = loaders
        cfg.train_dataloader.dataset = dict(
            type='MultiImageMixDataset', dataset=dataset, pipeline=[*MOSAIC, pack]
        )
    else:
        dataset.pipeline = [*loaders, *ZOO, pack]
    return cfg


@pytest.fixture(scope='module')
def caches(data, teachers, tmp_path_factory) -> dict[str, str]:
    """Two views of each image."""
    folder = tmp_path_factory.mktemp('caches')
    kinds = [k if isinstance(k, str) else k.values[0] for k in KINDS]
    kinds = [k for k in kinds if k == 'mmseg' or not needs_ops.args[0]]
    return {
        kind: write_cache(recipe(kind, data, teachers), folder / kind, views=2) for kind in kinds
    }


def built(cfg: Config) -> Any:
    """The data set of a config."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg.train_dataloader.dataset)


@pytest.mark.parametrize('kind', KINDS)
def test_the_maps_are_those_of_the_online_teacher_on_the_same_view(kind, data, teachers, caches):
    cfg = recipe(kind, data, teachers)
    scope, tap = cfg.default_scope, Tap.parse(TAPS[cfg.default_scope])
    student = stock_models.build(model_of(scope))
    online, cached = OnlineTeacher(**cfg.model.teacher), CachedTeacher(caches[kind])
    for teacher in (online, cached):
        prepare(teacher, student.data_preprocessor, [tap])
    wired = use_cache(cfg, caches[kind])
    wire(wired)
    views = built(wired)
    assert len(views) == 6
    random.seed(5)  # nothing outside decides what is drawn
    items = [views[index] for index in (0, 4, 6, 10)]
    assert not torch.equal(items[0]['inputs'], items[2]['inputs'])  # two views of one image
    for item in items:
        batch = student.data_preprocessor(pseudo_collate([item]), True)
        ours, theirs = (
            as_list(taught(teacher, batch['inputs'], batch['data_samples'], [tap])[tap])
            for teacher in (cached, online)
        )
        for a, b in zip(ours, theirs, strict=True):
            peak = float(b.abs().max())
            torch.testing.assert_close(a, b, rtol=2**-11 * 1.01, atol=1e-5 * peak)


@pytest.mark.parametrize('kind', ['mmseg', pytest.param('mosaic', marks=needs_ops)])
def test_a_view_is_drawn_again_in_any_process_and_order(kind, data, teachers, caches):
    cfg = use_cache(recipe(kind, data, teachers), caches[kind])
    wire(cfg)
    views = built(cfg)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    here = [views[index] for index in range(12)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    close(caches[kind])
    there = DataLoader(
        views, batch_size=None, num_workers=2, sampler=range(11, -1, -1), collate_fn=lambda x: x
    )
    for ours, theirs in zip(reversed(here), there, strict=True):
        assert torch.equal(ours['inputs'], theirs['inputs'])
        for field in ('mmkd_teacher', 'gt_sem_seg', 'gt_instances'):
            if field in ours['data_samples']:
                found = [dict(one['data_samples'].get(field).items()) for one in (ours, theirs)]
                assert_same(*({k: plain(one[k]) for k in sorted(one)} for one in found))


def plain(value: Any) -> Any:
    """The numbers of boxes."""
    return getattr(value, 'tensor', value)


# --- in a run -------------------------------------------------------------------------------------


def test_a_run_on_views_is_that_with_the_teacher_itself(data, teachers, caches, tmp_path):
    """With the same views drawn for the online teacher, all losses are the same."""
    wired = use_cache(recipe('mmseg', data, teachers), caches['mmseg'])
    wire(wired)
    online = copy.deepcopy(wired)
    online.model.teacher = recipe('mmseg', data, teachers).model.teacher
    online.train_dataloader.dataset.caches = []
    runs = []
    for number, cfg in enumerate((online, wired)):
        cfg.work_dir = str(tmp_path / str(number))
        runs.append(Record())
        train(cfg, runs[-1])
    for one, other in zip(*(run.inputs for run in runs), strict=True):
        assert_same(one, other)
    for one, other in zip(*(run.losses for run in runs), strict=True):
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=2e-3), key


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_resumed_run_sees_the_views_that_it_would_have_seen(
    by_epoch, data, teachers, caches, tmp_path
):
    from mmengine.runner import Runner

    def run(folder: str, **changes: Any) -> Record:
        settings = dict(by_epoch=by_epoch, save_every=2, workers=int(by_epoch))
        cfg = use_cache(recipe('mmseg', data, teachers, **settings), caches['mmseg'])
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / folder), **changes))
        if by_epoch:
            cfg.train_cfg.max_epochs = 3
        else:
            cfg.train_cfg.max_iters = 8
        wire(cfg)
        runner, record = Runner.from_cfg(cfg), Record()
        make_resumable(runner)
        runner.register_hook(record)
        runner.train()
        return record

    whole = run('whole')
    saved = tmp_path / 'whole' / ('epoch_2.pth' if by_epoch else 'iter_2.pth')
    again = run('again', resume=True, load_from=str(saved))
    assert len(again.inputs) == (3 if by_epoch else 6)
    assert_same(again.inputs, whole.inputs[-len(again.inputs) :])
    assert (
        again.losses[0]['distill.term.loss']
        == whole.losses[-len(again.losses)]['distill.term.loss']
    )
    # in the first two passes, three batches each, every view comes once
    first = {image.numpy().tobytes() for batch in whole.inputs[:3] for image in batch}
    second = {image.numpy().tobytes() for batch in whole.inputs[3:6] for image in batch}
    assert len(first) == len(second) == 6 and not first & second


@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
def test_each_pass_shows_other_views(kind):
    sampler = ViewsInTurn(range(5), dict(type=kind), views=3, seed=1)
    assert hasattr(sampler, 'skip') == hasattr(sampler.sampler, 'skip')
    seen = []
    for epoch in range(4):
        if kind == 'DefaultSampler':
            sampler.set_epoch(epoch)
            indices = iter(sampler)
        elif epoch == 0:
            indices = iter(sampler)
        seen.append([next(indices) for _ in range(5)])
    assert all(sorted(i % 5 for i in one) == [0, 1, 2, 3, 4] for one in seen)
    assert set(Counter(i for one in seen[:3] for i in one).values()) == {1}
    assert sorted(seen[3]) == sorted(seen[0])
    assert len({i // 5 for i in seen[0]}) > 1  # not the same number for all images


@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
def test_processes_show_together_what_one_shows(kind):
    def shown(processes: int) -> list[set[int]]:
        """The images and views of three passes over six images, of all processes."""
        passes: list[set[int]] = [set(), set(), set()]
        for rank in range(processes):
            with (
                mock.patch.object(drawn, 'get_dist_info', lambda rank=rank: (rank, processes)),
                mock.patch.object(sampling, 'get_dist_info', lambda rank=rank: (rank, processes)),
            ):
                turns = ViewsInTurn(range(6), dict(type=kind), views=3, seed=1)
                indices = iter(turns)
                for epoch, found in enumerate(passes):
                    if kind == 'DefaultSampler':
                        turns.set_epoch(epoch)
                        indices = iter(turns)
                    found |= {next(indices) for _ in range(6 // processes)}
        return passes

    alone = shown(1)
    assert [len(one) for one in alone] == [6, 6, 6] and len(set.union(*alone)) == 18
    assert shown(2) == alone == shown(3)


# --- the tool -------------------------------------------------------------------------------------


def test_more_views_are_added_without_touching_the_old_ones(data, teachers, tmp_path, capsys):
    cfg = recipe('mmseg', data, teachers)
    path = write_cache(cfg, tmp_path / 'cache', views=1)
    name, tap = 'images/3.png', TAPS['mmseg']
    before = TeacherCache(path)._get(f'{name}\0{of_view(tap, 0)}'.encode())
    write_cache(cfg, tmp_path / 'cache', views=3)
    assert '3 views of 6 images, 6 of 18 in' in capsys.readouterr().out
    cache = TeacherCache(path)
    assert cache.meta['views'] == 3 and len(list(cache.keys())) == 18
    assert cache._get(f'{name}\0{of_view(tap, 0)}'.encode()) == before
    write_cache(cfg, tmp_path / 'cache', views=2)  # nothing to do, and nothing is lost
    assert TeacherCache(path).meta['views'] == 3
    fewer = use_cache(cfg, path, views=2)
    wire(fewer)
    assert fewer.train_dataloader.sampler.views == 2


def test_the_tool_takes_whole_images_where_they_are_exact(data, teachers, tmp_path, capsys, log):
    cfg = recipe('mmseg', data, teachers)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[2:-1] = [dict(type='Resize', scale=(64, 64)), dict(type='RandomFlip', prob=0.5)]
    cache = TeacherCache(write_cache(cfg, tmp_path / 'cache', views=4))
    assert 'views' not in cache.meta and len(list(cache.keys())) == 12
    assert 'whole images and no views: the train pipeline shows each' in capsys.readouterr().out
    pipeline.insert(3, dict(type='RandomCrop', crop_size=(48, 48)))
    write_cache(cfg, tmp_path / 'other')
    told = 'which do not show what RandomCrop does to them; --views 8'
    assert any(
        told in record.getMessage() for record in log.records if record.levelname == 'WARNING'
    )


@needs_ops
def test_mosaics_need_views(data, teachers, tmp_path):
    cfg = recipe('mosaic', data, teachers)
    with pytest.raises(UsageError, match=r'to mix several images.*Or store views of it: --views 8'):
        write_cache(cfg, tmp_path / 'cache')
    inner = cfg.train_dataloader.dataset.dataset
    inner.pipeline.append(dict(type='CachedMosaic', img_scale=(64, 64)))
    with pytest.raises(
        ValueError, match=r'pipeline\[2\]: `CachedMosaic` mixes in images of earlie'
    ):
        write_cache(cfg, tmp_path / 'cache', views=2)


class Counting:
    """Draws something else each time."""

    count = 0

    def __call__(self, results: dict) -> dict:
        Counting.count += 1
        results['img'] = results['img'] // 2 + Counting.count
        return results


def test_a_transform_that_draws_otherwise_each_time_is_refused(data, teachers, tmp_path):
    TRANSFORMS.register_module(module=Counting, force=True)
    cfg = recipe('mmseg', data, teachers)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='mmkd_plugin.Counting'))
    with pytest.raises(UsageError, match=r'another image from the same seed.*: Counting$'):
        write_cache(cfg, tmp_path / 'cache', views=2)


@pytest.mark.parametrize(
    ('dtype', 'mixed'), [('compact', 'random'), ('smallest', 'learnt')], ids=lambda one: one
)
def test_what_compact_costs_is_told(dtype, mixed, data, teachers, tmp_path, capsys):
    cfg = recipe('mmseg', data, teachers)
    cfg.model.distill.hint = dict(
        tap='decode_head.bottleneck', loss=dict(type='mmkd_plugin.HintLoss', loss_weight=1)
    )
    how = dict(dtype=dtype, channels=4, projection=mixed)
    path = write_cache(cfg, tmp_path / 'cache', views=1, **how)
    said = capsys.readouterr().out
    before = TeacherCache(path).read('images/1.png', 'decode_head.bottleneck view 0')
    assert write_cache(cfg, tmp_path / 'cache', views=2, **how) == path  # with the same mixtures
    for view, equal in ((0, True), (1, False)):
        after = TeacherCache(path).read('images/1.png', f'decode_head.bottleneck view {view}')
        assert np.array_equal(before.maps[0], after.maps[0]) == equal
    with pytest.raises(CacheError, match='channels there: 4, here: 3'):
        write_cache(cfg, tmp_path / 'cache', views=2, dtype=dtype, channels=3, projection=mixed)
    assert 'decode_head.conv_seg: ' in said and '% of float16; probabilities off by 0.00' in said
    assert ' at most, divergence 0.00' in said
    assert '% of float16; distances between positions off by ' in said
    about = TeacherCache(path).meta['taps']
    assert about['decode_head.conv_seg']['tau'] == 1
    cfg.model.distill.term.loss.loss_weight = dict(auto=0.5)
    assert about['decode_head.bottleneck']['maps'][0][0] == 4
    wired = use_cache(cfg, path)
    wire(wired)
    wired.work_dir, record = str(tmp_path / 'run'), Record()
    train(wired, record)
    assert record.losses[1]['distill.hint.loss'] > 0
    hotter = use_cache(cfg, path)
    hotter.model.distill.term.loss.tau = 4
    with pytest.raises(ValueError, match=r'distill.term.loss.tau is 4, and .* up to 1. Write a c'):
        wire(hotter)
    hotter.model.distill.term.loss = stock_models.cwd()
    with pytest.raises(ValueError, match=rf'holds the probabilities of .* without --dtype {dtype}'):
        wire(hotter)


@needs_ops
def test_losses_on_boxes_can_be_cached(data, teachers, tmp_path):
    cfg = recipe('mmdet', data, teachers)
    weights = save_weights(stock_models.gfl(16, 2), tmp_path / 'gfl.pth')
    cfg.model.student = stock_models.gfl(8, 2)
    cfg.model.teacher = dict(config=stock_models.gfl(16, 2), checkpoint=weights)
    cfg.model.distill = dict(
        ld=dict(tap='bbox_head', loss=dict(type='mmkd_plugin.BoxDistributionLoss'))
    )
    wired = use_cache(cfg, write_cache(cfg, tmp_path / 'cache', views=1))
    wire(wired)
    wired.work_dir, record = str(tmp_path / 'run'), Record()
    train(wired, record)
    assert record.losses[1]['distill.ld.loss'] > 0


# --- what is wrong --------------------------------------------------------------------------------


def cropped(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline[3].crop_size = (32, 32)


def longer(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline.insert(3, dict(type='RandomRotFlip'))


def padded(cfg: Config) -> None:
    cfg.model.student.data_preprocessor.size = (96, 96)


def other_kind(cfg: Config) -> None:
    cfg.model.student.data_preprocessor.type = 'SegDataPreprocessor'


def no_kind(cfg: Config) -> None:
    cfg.model.student.data_preprocessor.type = None


def elsewhere(cfg: Config) -> None:
    cfg.model.teacher.path = 'none'


def switched(cfg: Config) -> None:
    cfg.custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=[])]


def more_views(cfg: Config) -> None:
    cfg.model.teacher.views = 3


def no_views(cfg: Config) -> None:
    cfg.model.teacher.views = 0


def hint(cfg: Config) -> None:
    cfg.model.distill.term.tap = 'decode_head.bottleneck'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            cropped,
            r'pipeline\[3\].crop_size there: \[64, 64\], here: \[32, 32\]. Write anoth',
        ),
        (longer, r'pipeline there: LoadImageFromFile, .*; here: .*RandomRotFlip'),
        (padded, r'data_preprocessor.size there: \[64, 64\], here: \[96, 96\]'),
        (other_kind, r'data_preprocessor\.type there: SegDataPreProcessor, here: SegDataPrep'),
        (no_kind, r'student\.data_preprocessor\.type must be the name of a class, got None'),
        (elsewhere, r"^teacher 'teacher'\.path: no teacher cache at none; write it with"),
        (switched, r'custom_hooks\[0\]: `PipelineSwitchHook` changes the pipeline during training'),
        (more_views, r'teacher.views is 3, and .* has 2 views of each image; for more: .* 3'),
        (no_views, r'teacher\.views must be a whole number from 1 on, got 0'),
        (hint, r'holds no maps of decode_head.bottleneck; it has: decode_head.conv_seg'),
    ],
)
def test_a_config_that_does_not_fit_the_cache(change, words, data, teachers, caches):
    cfg = use_cache(recipe('mmseg', data, teachers), caches['mmseg'])
    change(cfg)
    with pytest.raises(ValueError, match=words):
        wire(cfg)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(views=None), 'it holds maps of views, not of whole images'),
        (dict(views=2, dtype='uint8'), 'dtype there: float16, here: uint8'),
        (dict(views=2, channels=2), '--channels 2: no map has more channels that may be mixed'),
    ],
)
def test_another_cache_is_not_overwritten(changes, words, data, teachers, caches):
    cfg = recipe('mmseg', data, teachers)
    if changes['views'] is None:
        cfg.train_dataloader.dataset.pipeline[2:-1] = []
    with pytest.raises((CacheError, UsageError), match=words):
        write_cache(cfg, caches['mmseg'], **changes)
    assert TeacherCache(caches['mmseg']).meta['views'] == 2


def test_another_picture_is_noticed(data, teachers, caches, tmp_path):
    cfg = use_cache(recipe('mmseg', data, teachers), caches['mmseg'])
    wire(cfg)
    views = built(cfg)
    views[1]
    path = str(data / 'images/1.png')
    image = cv2.imread(path)
    cv2.imwrite(path, image[:, ::-1] // 2)
    try:
        with pytest.raises(ValueError, match=r'view 0 of images/1.png is another image than the'):
            views[1]
        there = DataLoader(views, batch_size=None, num_workers=1, sampler=[1])
        with pytest.raises(CacheError) as caught:
            next(iter(there))
        assert str(caught.value).startswith('view 0 of images/1.png is ') and is_ours(caught.value)
        assert '\n' not in str(caught.value)
    finally:
        cv2.imwrite(path, image)


def test_other_images_are_noticed_before_training(data, teachers, caches, tmp_path):
    cfg = use_cache(recipe('mmseg', data, teachers), caches['mmseg'])
    cfg.train_dataloader.dataset.indices = 4
    cfg.work_dir, record = str(tmp_path), Record()
    wire(cfg)
    wire(cfg)  # wiring twice changes nothing
    assert len(cfg.custom_hooks) == 1
    with pytest.raises(ValueError, match='was written for other training images, or for another o'):
        train(cfg, record)
    assert not record.losses


def test_the_student_of_a_wired_config_trains_alone(data, teachers, caches):
    cfg = recipe('mmseg', data, teachers)
    before = copy.deepcopy(cfg.train_dataloader)
    wired = use_cache(cfg, caches['mmseg'])
    wire(wired)
    assert wired.train_dataloader.dataset.type == 'mmkd_plugin.DrawnViews'
    unwire(wired)
    assert wired.train_dataloader.to_dict() == before.to_dict()


def test_names_decide_what_is_drawn(data, teachers):
    cfg = recipe('mmseg', data, teachers)
    dataset = built(cfg)
    names = DrawnViews(dataset, root=str(data)).names()
    assert set(names) == {f'images/{i}.png' for i in range(6)}
    one, other, again = (draw(dataset, 0, name, 0)['inputs'] for name in ('a', 'b', 'a'))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert digest_of(['a', 'b']) != digest_of(['b', 'a'])
    assert drawn_from(cfg)['dataset']['pipeline'][3]['crop_size'] == [64, 64]
