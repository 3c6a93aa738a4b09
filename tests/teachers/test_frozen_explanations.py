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
from mmkd_plugin.distiller import _taught
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


def taught(cfg: Config, batch: dict):
    """Returns what the teacher of a config explains in a batch, the model and the data."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
    (teacher,), (term,) = model.teachers.values(), model.distill.values()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with torch.no_grad():
        seen = _taught(teacher, data['inputs'], data['data_samples'], [term])
    return seen.explanations[term], model, data


@pytest.mark.parametrize('kind', ['GradCAM', 'GradientAttention'])
@pytest.mark.parametrize('scope', BOTH)
def test_without_augmentation_they_are_the_teachers_own(scope, kind, scenes, seeing, tmp_path):  # noqa: F811
    cfg = explaining(scope, recipe(scope, scenes, seeing, STILL), kind, max_classes=4)
    path = write_cache(cfg, tmp_path / 'cache')
    cached = use_cache(cfg, path)
    wire(cached)
    batch = pseudo_collate(samples_of(cached, 0))
    online, *_ = taught(cfg, batch)
    frozen, model, data = taught(cached, batch)
    assert model.teachers['teacher'].work([]).startswith('cached in')
    same = online.chosen.classes == frozen.chosen.classes
    assert same.float().mean() > 0.9 and online.chosen.present.sum() >= 6
    assert len(online.maps) == len(frozen.maps) == (1 if scope == 'mmseg' else 5)
    nonzero = 0
    for a, b in zip(online.maps, frozen.maps, strict=True):
        assert a.shape == b.shape
        for n, k in np.argwhere((same & online.chosen.present).numpy()):
            peak = a[n, k].abs().max().item()
            assert (a[n, k] - b[n, k]).abs().max().item() <= 2e-3 * peak + 1e-12
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
        explanation, *_ = taught(cached, pseudo_collate(samples_of(cached, 0, count=1)))
        classes = explanation.chosen.classes[0]
        order = classes.argsort()
        maps.append([classes[order]] + [x[0, order] for x in explanation.maps])
    assert torch.equal(maps[0][0], maps[1][0]) and any(x.any() for x in maps[0][1:])
    for straight, flipped in zip(maps[0][1:], maps[1][1:], strict=True):
        present = maps[0][0] >= 0
        torch.testing.assert_close(straight[present].flip(-1), flipped[present])


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
