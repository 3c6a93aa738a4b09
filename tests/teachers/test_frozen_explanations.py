"""Stored explanations: compared with the teacher's own, and in real runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmkd_plugin.cache.store import TeacherCache
from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.teachers import Batch, Lesson
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.teachers.test_cached import (
    BOTH,
    CROP,
    FLIP,
    RESIZE,
    checkpoints,  # noqa: F401
    model_of,
    recipe,
    samples_of,
    scenes,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures('own_globals')

STILL = dict(type='Resize', scale=(128, 128), keep_ratio=True)
SCORES = dict(mmseg='decode_head.conv_seg', mmdet='bbox_head.retina_cls')


@pytest.fixture(scope='module')
def seeing(tmp_path_factory) -> dict[str, str]:
    """Weights of teachers that see several classes in every image."""
    folder, files = tmp_path_factory.mktemp('seeing'), {}
    for scope in SCORES:
        torch.manual_seed(1)
        model = stock_models.build(model_of(scope, 16))
        if scope == 'mmseg':
            nn.init.normal_(model.decode_head.conv_seg.weight, 0, 1)
        else:
            nn.init.normal_(model.bbox_head.retina_cls.weight, 0, 0.2)
            nn.init.constant_(model.bbox_head.retina_cls.bias, -1)
        files[scope] = str(folder / f'{scope}.pth')
        torch.save(dict(state_dict=model.state_dict()), files[scope])
    return files


def explaining(scope: str, cfg: Config, kind: str = 'GradCAM', **options) -> Config:
    """The same run with a term on explanations."""
    cfg = copy.deepcopy(cfg)
    cfg.model.distill = dict(
        explain=dict(
            tap='backbone.layer4' if scope == 'mmseg' else 'neck',
            explainer=dict(
                type=f'mmkd_plugin.{kind}', scores=SCORES[scope], score_thr=0.3, **options
            ),
            loss=dict(type='mmkd_plugin.ExplanationLoss'),
        )
    )
    return cfg


def taught(cfg: Config, batch: dict) -> tuple[Lesson, nn.Module, dict]:
    """What the teacher of a config makes of a batch, the whole model, and the batch for it."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
    (teacher,), (term,) = model.teachers.values(), model.distill.values()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with torch.no_grad():
        lesson = teacher.teach(Batch(data['inputs'], data['data_samples']), [term.teacher_view])
    return lesson, model, data


def explained(lesson: Lesson) -> dict[tuple[int, int], list[torch.Tensor]]:
    """The explanations of a lesson, one for each map that explains, by image and class."""
    (maps,), (chosen,) = lesson.shown.values(), lesson.chosen.values()
    pairs = [(n, chosen.classes[n, k].item()) for n, k in chosen.present.nonzero().tolist()]
    return {pair: [x[i] for x in maps] for i, pair in enumerate(pairs)}


@pytest.mark.parametrize('kind', ['GradCAM', 'GradientAttention'])
@pytest.mark.parametrize('scope', BOTH)
def test_without_augmentation_they_are_the_teachers_own(scope, kind, scenes, seeing, tmp_path):  # noqa: F811
    cfg = explaining(scope, recipe(scope, scenes, seeing, STILL), kind, max_classes=4)
    path = write_cache(cfg, tmp_path / 'cache')
    cached = use_cache(cfg, path)
    wire(cached)
    batch = pseudo_collate(samples_of(cached, 0))
    online, frozen = (taught(one, batch) for one in (cfg, cached))
    lesson, model, data = frozen
    assert 'cached in' in model.teachers['teacher'].work()
    ours, theirs = explained(online[0]), explained(lesson)
    assert len(ours) >= 6 and len(set(ours) & set(theirs)) > 0.9 * len(ours)
    nonzero = 0
    for pair in set(ours) & set(theirs):
        assert len(ours[pair]) == len(theirs[pair]) == (1 if scope == 'mmseg' else 5)
        for a, b in zip(ours[pair], theirs[pair], strict=True):
            assert a.shape == b.shape
            peak = a.abs().max().item()
            assert (a - b).abs().max().item() <= 2e-3 * peak + 1e-12
            nonzero += peak > 0
    assert nonzero >= 6
    losses = model(**data, mode='loss')
    losses['distill.explain.loss'].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.student.parameters())


@pytest.mark.parametrize('scope', BOTH)
def test_they_are_flipped_with_the_image(scope, scenes, seeing, tmp_path):  # noqa: F811
    plain = recipe(scope, scenes, seeing, STILL, dict(type='RandomFlip', prob=0.0))
    cfg = explaining(scope, plain, max_classes=20)
    path = write_cache(cfg, tmp_path / 'cache', mirrored=False)
    maps = []
    for prob in (0.0, 1.0):
        cached = use_cache(cfg, path)
        cached.train_dataloader.dataset.pipeline[-2].prob = prob
        wire(cached)
        lesson, *_ = taught(cached, pseudo_collate(samples_of(cached, 0, count=1)))
        maps.append(explained(lesson))
    straight, flipped = maps
    assert set(straight) == set(flipped) and any(x.any() for one in straight.values() for x in one)
    for pair, one in straight.items():
        for x, other in zip(one, flipped[pair], strict=True):
            torch.testing.assert_close(x.flip(-1), other)


def test_a_run_under_crops_and_flips(scenes, seeing, tmp_path):  # noqa: F811
    cfg = explaining('mmseg', recipe('mmseg', scenes, seeing, RESIZE, CROP, FLIP))
    cfg.model.distill.logits = dict(
        tap=SCORES['mmseg'], loss=dict(type='mmkd_plugin.PixelWiseLoss')
    )
    cfg = use_cache(cfg, write_cache(cfg, tmp_path / 'cache', top_k=3))
    wire(cfg)
    cfg.work_dir = str(tmp_path / 'work_dir')
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    values = scalars['train/distill.explain.loss'].data[0]
    assert np.isfinite(values).all() and (values > 0).any()
    state = torch.load(next(Path(cfg.work_dir).glob('iter_*.pth')), weights_only=False)
    stock_models.build(model_of('mmseg')).load_state_dict(state['state_dict'])


def test_a_cache_of_other_explanations_is_refused(scenes, seeing, tmp_path):  # noqa: F811
    plain = recipe('mmseg', scenes, seeing, STILL)
    path = write_cache(explaining('mmseg', plain), tmp_path / 'cache')
    names = set(TeacherCache(path).meta['taps'])
    assert names == {SCORES['mmseg'], f'GradCAM(backbone.layer4; {SCORES["mmseg"]}, 0.3)'}
    other = explaining('mmseg', plain, 'GradientAttention')
    with pytest.raises(ValueError, match=r'holds no maps of GradientAttention\(backbone'):
        wire(use_cache(other, path))


def test_a_student_of_other_classes_is_refused(scenes, seeing, tmp_path):  # noqa: F811
    cfg = explaining('mmseg', recipe('mmseg', scenes, seeing, STILL))
    cached = use_cache(cfg, write_cache(cfg, tmp_path / 'cache'))
    cached.model.student.decode_head.num_classes = 7
    cached.model.student.decode_head.out_channels = 7
    message = 'the student has 7 classes and the teacher 11'
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(ValueError, match=message):
        MODELS.build(cached.model)
