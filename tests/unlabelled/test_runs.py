"""Runs with images without labels: what is seen, learnt and logged, and exact resumption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.unlabelled.pipelines import complete
from tests import runs
from tests.caches import use_cache, write_cache
from tests.runs import assert_same, needs_ops, save_weights
from tests.tools.tool_runs import load_tool
from tests.unlabelled.runs import (
    MORE,
    STUDENTS,
    Seen,
    build,
    distilled,
    make_more,
    run_config,
    train,
)

pytestmark = [pytest.mark.usefixtures('own_globals'), needs_ops]


@pytest.fixture(scope='module')
def more(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of images without labels."""
    return make_more(tmp_path_factory.mktemp('more') / 'images')


class Weights(Hook):
    """Notes the automatic weight after each iteration."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.found.append(runner.model.distill['cwd'].auto.weight.clone())


def test_labelled_images_are_as_without(data, more, tmp_path):
    loss = dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto')
    terms, both, weights = dict(cwd=dict(tap='decode_head.conv_seg', loss=loss)), [], []
    for number, unlabelled in enumerate([None, dict(dataset=more, ratio=0.5)]):
        model = distilled('mmseg', unlabelled, distill=terms)
        weights.append(Weights())
        both.append(train(run_config(model, data, tmp_path / str(number), 2), weights[-1]))
    assert_same(both[1].inputs, both[0].inputs)
    assert [len(images) for images in both[1].unlabelled] == [1, 1] and not both[0].unlabelled
    first, beside = both[0].losses[0], both[1].losses[0]
    assert beside['decode.loss_ce'] == first['decode.loss_ce']
    # of a term the mean over all images of the step: two with labels, one without
    mean = (2 * first['distill.cwd.loss'] + beside['distill.cwd.unlabelled']) / 3
    assert beside['distill.cwd.loss'] == pytest.approx(mean, rel=1e-5)
    assert beside['loss'] == pytest.approx(beside['decode.loss_ce'] + beside['distill.cwd.loss'])
    found = [one.found[0] for one in weights]  # measured on the labelled images
    assert found[0] > 0 and torch.equal(*found)


def test_the_student_learns_from_them_and_they_are_not_mixed(data, more, tmp_path):
    model = distilled('mmseg', dict(dataset=more))
    augment = [dict(type='mmkd_plugin.CutMix', prob=1.0)]
    model['student']['data_preprocessor'].update(
        type='mmkd_plugin.SegDataPreProcessor', batch_augments=augment
    )
    runner, gradients = build(run_config(model, data, tmp_path, 1)), []
    batch = next(iter(runner._train_dataloader))
    runner.model.train()
    processed = runner.model.data_preprocessor(batch, True)
    others = processed['unlabelled']
    assert len(processed['inputs']) == len(others['inputs']) == 2
    labels = torch.stack([one.gt_sem_seg.data for one in others['data_samples']])
    assert set(labels.unique().tolist()) == {255}
    for inputs in (others['inputs'], torch.zeros_like(others['inputs'])):
        runner.model.zero_grad()
        given = {**processed, 'unlabelled': {**others, 'inputs': inputs}}
        runner.model(**given, mode='loss')['distill.cwd.loss'].backward()
        gradients.append(runner.model.student.backbone.conv1.weight.grad.clone())
    assert not torch.equal(*gradients)


@pytest.mark.parametrize(
    ('scope', 'by_epoch', 'workers'), [('mmseg', False, 2), ('mmdet', True, 0)]
)
def test_a_resumed_run_sees_the_same_images(scope, by_epoch, workers, data, more, tmp_path):
    def run(name: str, start: Path | None) -> tuple[Seen, dict]:
        model = distilled(scope, dict(dataset=more, pseudo_labels=0.3))
        settings = dict(by_epoch=by_epoch, workers=workers, save_every=1)
        cfg = run_config(model, data, tmp_path / name, 2 if by_epoch else 4, **settings)
        if start is not None:
            cfg.load_from, cfg.resume = str(start), True
        seen = train(cfg)
        file = tmp_path / name / ('epoch_2.pth' if by_epoch else 'iter_4.pth')
        return seen, dict(read_checkpoint(file)['state_dict'])

    whole = run('whole', None)
    middle = 'epoch_1.pth' if by_epoch else 'iter_2.pth'
    resumed = run('resumed', tmp_path / 'whole' / middle)
    assert_same(resumed[1], whole[1])
    count = len(resumed[0].unlabelled)
    assert count == (3 if by_epoch else 2)
    assert_same(resumed[0].unlabelled, whole[0].unlabelled[-count:])


def test_only_images_without_labels(data, more, tmp_path):
    seen = train(run_config(distilled('mmseg', dict(dataset=more, only=True)), data, tmp_path, 1))
    assert all(set(one) == {'loss', 'distill.cwd.loss'} for one in seen.losses)
    assert read_checkpoint(tmp_path / 'iter_1.pth')['meta']['dataset_meta']['classes']


def test_pseudo_labels_of_pixels_beside_labels(data, more, tmp_path):
    settings = dict(dataset=more, pseudo_labels=0.1)
    (log,) = train(run_config(distilled('mmseg', settings), data, tmp_path, 1)).losses
    assert 0 < log['pseudo_labels.pixels'] <= 1 and log['distill.cwd.unlabelled'] > 0
    assert log['loss'] == pytest.approx(log['decode.loss_ce'] + log['distill.cwd.loss'])


def test_pseudo_labels_of_boxes_alone(data, more, tmp_path):
    settings = dict(dataset=more, only=True, pseudo_labels=0.1)
    (log,) = train(run_config(distilled('mmdet', settings), data, tmp_path, 1)).losses
    assert log['pseudo_labels.boxes'] > 0 and log['loss_cls'] > 0 and log['loss_bbox'] > 0


def test_a_term_that_needs_labels_is_off_on_them(data, more, tmp_path):
    term = dict(tap='neck', loss=dict(type='mmkd_plugin.FocalGlobalLoss'))
    cwd = distilled('mmdet', None)['distill']
    model = distilled('mmdet', dict(dataset=more), distill=dict(cwd, fgd=term))
    seen = train(run_config(model, data, tmp_path, 1))
    assert 'distill.cwd.unlabelled' in seen.losses[0]
    assert 'distill.fgd.loss' in seen.losses[0] and 'distill.fgd.unlabelled' not in seen.losses[0]
    plan = next(tmp_path.glob('*/*.log')).read_text()
    assert f'images without labels ({more}), 1 for each labelled one: on for cwd' in plan
    assert 'off there: fgd, because FocalGlobalLoss needs labels (ground-truth boxes)' in plan


def test_a_cached_teacher_has_them_too(data, more, tmp_path):
    model = distilled('mmseg', dict(dataset=more))
    weights = tmp_path / 'teacher.pth'
    model['teacher']['checkpoint'] = save_weights(STUDENTS['mmseg'](), weights)
    cfg = run_config(model, data, tmp_path / 'run', 2)
    complete(cfg)
    path = write_cache(cfg, tmp_path / 'cache')
    seen = train(use_cache(cfg, path))
    assert all(one['distill.cwd.unlabelled'] > 0 for one in seen.losses)


def test_a_cache_of_views_has_them_too(data, more, tmp_path, capsys):
    """The terms are those of the online teacher on the same views; each pass shows others."""
    weights = save_weights(STUDENTS['mmseg'](), tmp_path / 'teacher.pth')
    model = distilled('mmseg', dict(dataset=more))
    model['teacher']['checkpoint'] = weights
    cfg = run_config(model, data, tmp_path / 'cached', 5)
    complete(cfg)
    path = write_cache(cfg, tmp_path / 'cache', views=2)
    assert f'2 views of {6 + MORE} images, 0 of {12 + 2 * MORE}' in capsys.readouterr().out
    load_tool('cache_teacher').verify(path, cfg)  # nothing is missing
    cached = train(use_cache(cfg, path))
    for one in cached.losses:
        assert one['distill.cwd.unlabelled'] > 0 and one['distill.cwd.loss'] > 0
    both = [
        {x.numpy().tobytes() for batch in part for x in batch}
        for part in (cached.unlabelled[:2], cached.unlabelled[3:5])
    ]
    assert not both[0] & both[1]

    online = copy.deepcopy(use_cache(cfg, path))
    wire(online)
    online.model.teacher = cfg.model.teacher
    for views in (online.train_dataloader.dataset, online.model.unlabelled.dataset):
        assert views.pop('caches')
    online.custom_hooks, online.work_dir = [], str(tmp_path / 'online')
    other = train(online)
    assert_same(other.unlabelled, cached.unlabelled)
    assert_same(other.inputs, cached.inputs)
    for ours, theirs in zip(cached.losses, other.losses, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=5e-3), key

    changed = use_cache(cfg, path)
    changed.model.unlabelled.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
    with pytest.raises(ValueError, match=r'another train pipeline: unlabelled.dataset.pipeline th'):
        wire(changed)


@pytest.mark.parametrize('only', [False, True])
def test_a_run_of_other_tools_says_what_is_missing(only, data, more, tmp_path):
    settings = dict(dataset=more, only=only)
    cfg = run_config(distilled('mmseg', settings), data, tmp_path, 1)
    with pytest.raises(ValueError, match='carries no images without labels; train with'):
        runs.train(cfg)


def test_other_tools_train_on_them_alone_with_a_saved_config(data, more, tmp_path):
    cfg = run_config(distilled('mmseg', dict(dataset=more, only=True)), data, tmp_path, 1)
    complete(cfg)
    scalars = runs.train(cfg).message_hub.log_scalars
    assert {key for key in scalars if 'loss' in key} == {'train/loss', 'train/distill.cwd.loss'}
    other = run_config(distilled('mmseg', dict(dataset=more)), data, tmp_path, 1)
    other.train_dataloader = cfg.train_dataloader  # none is labelled, and there should be some
    with pytest.raises(ValueError, match='carries no images without labels; train with'):
        runs.train(other)


@pytest.mark.parametrize('only', [False, True])
def test_batches_by_aspect_ratio(only, data, more, tmp_path):
    """As in each stock config of mmdet with boxes."""
    cfg = run_config(distilled('mmdet', dict(dataset=more, only=only)), data, tmp_path, 2)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    seen = train(cfg)
    assert all(one['distill.cwd.loss'] > 0 for one in seen.losses)
    assert [len(one) for one in seen.unlabelled] == ([] if only else [2, 2])


@pytest.mark.parametrize('only', [False, True])
def test_a_wrapper_mixes_scenes_without_label_maps(only, data, more, tmp_path):
    cfg = run_config(distilled('mmseg', dict(dataset=more, only=only)), data, tmp_path, 1)
    inner = cfg.train_dataloader.dataset
    load, rest = inner.pipeline[:2], inner.pipeline[2:]
    mosaic = dict(type='RandomMosaic', prob=1.0, img_scale=(64, 72))
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset', dataset={**inner, 'pipeline': load}, pipeline=[mosaic, *rest]
    )
    (log,) = train(cfg).losses
    assert log['distill.cwd.loss'] > 0 and ('decode.loss_ce' in log) is not only
