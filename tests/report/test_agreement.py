"""A run measures its agreement with its teachers as the metric of that name does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope

from mmkd_plugin.report.agreement import agreement_of
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.metrics.runs import config_of, detector, run_test, segmentor, weighted
from tests.runs import config, needs_ops

AGREEMENT = 'mmkd_plugin.TeacherAgreement'
TERM = dict(hint=dict(tap='backbone.layer4', loss=dict(type='mmkd_plugin.HintLoss')))


def compared(student: dict, teacher: dict, data: Path, work_dir: Path, **more: Any) -> list[dict]:
    """What is found for a student with the weights of a file, on the images of the tests."""
    own = dict(student['config'], test_cfg=dict(student['config']['test_cfg']))
    model = stock_models.distiller(own, teacher, TERM)
    model.student.load_state_dict(torch.load(student['checkpoint'])['state_dict'])
    cfg = config_of(student, data, work_dir)
    with DefaultScope.overwrite_default_scope(student['config']['_scope_']):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    training = [module.training for module in model.modules()]
    found = agreement_of(model.train(), dataset, more.pop('told', teacher), **more)
    assert [module.training for module in model.train().modules()] == training
    return found


@pytest.mark.parametrize('kind', [segmentor, pytest.param(detector, marks=needs_ops)])
def test_as_the_metric_measures_it(kind, data: Path, tmp_path: Path) -> None:
    student, teacher = (weighted(kind(), tmp_path, seed) for seed in (1, 2))
    (found,) = compared(student, teacher, data, tmp_path)
    assert (found['teacher'], found['images']) == ('teacher', 6)
    scores, _ = run_test(student, data, tmp_path, dict(type=AGREEMENT, teacher=teacher))
    for name, share in found['shares'].items():
        expected = scores[f'agreement/{name}']
        assert share == pytest.approx(expected) if share is not None else expected != expected


def test_no_image_is_begun_after_the_time(data: Path, tmp_path: Path) -> None:
    student, teacher = (weighted(segmentor(), tmp_path, seed) for seed in (1, 2))
    (found,) = compared(student, teacher, data, tmp_path, seconds=0.0)
    assert found['images'] == 1


def test_a_teacher_whose_maps_are_stored_is_loaded_for_it(data: Path, tmp_path: Path) -> None:
    pytest.importorskip('zstandard')
    student, teacher = (weighted(segmentor(), tmp_path, seed) for seed in (1, 2))
    model = dict(
        _scope_='mmseg', type='mmkd_plugin.Distiller', student=student['config'], teacher=teacher,
        distill=TERM,
    )  # fmt: skip
    cfg = config(model, data, tmp_path, 1)
    stored = use_cache(cfg, write_cache(cfg, tmp_path / 'cache'), **teacher).model.teacher
    online = compared(student, teacher, data, tmp_path)
    assert compared(student, stored, data, tmp_path) == online
    alone = dict(type=stored.type, path=stored.path)
    (found,) = compared(student, alone, data, tmp_path)
    assert found['problem'] == 'it has no model that predicts'


def test_classes_in_another_order_are_renumbered(data: Path, tmp_path: Path) -> None:
    student = weighted(segmentor(), tmp_path, 1)
    (alike,) = compared(student, student, data, tmp_path)
    assert alike['shares'] == dict(pixel=100.0)
    turned = dict(student, classes=['disc', 'ground', 'box'])
    (other,) = compared(student, turned, data, tmp_path)
    assert other['shares']['pixel'] < 100.0
    (foreign,) = compared(student, dict(student, classes=['a', 'b', 'c']), data, tmp_path)
    assert foreign['problem'] == 'it was trained on other classes than the data set has'
