"""``tools/test.py`` with this package's metrics beside mIoU and mAP."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.cli import UsageError, complete_metrics
from tests.runs import needs_ops
from tests.tools.tool_runs import run_tool, save_random_weights

AGREEMENT = dict(type='mmkd_plugin.TeacherAgreement')
LOCALIZATION, SIMILARITY = (
    dict(
        type=f'mmkd_plugin.Explanation{name}',
        explainer=dict(type='mmkd_plugin.GradientAttention', scores='decode_head.conv_seg'),
        tap='backbone.layer4',
    )
    for name in ('Localization', 'Similarity')
)


@pytest.fixture
def tested(call_tool, tmp_path: Path):
    """Runs ``tools/test.py`` in this process and returns the numbers that it wrote."""

    def call(config: Path, weights: Path, *args: object) -> dict[str, float]:
        work_dir = tmp_path / 'test'
        call_tool('test', config, weights, '--work-dir', work_dir, *args)
        (file,) = work_dir.glob('*/2*.json')
        return json.loads(file.read_text())

    return call


def beside(folder: Path, *metrics: dict) -> Path:
    """A distilled config with these metrics besides its own."""
    config = folder / 'measured.py'
    config.write_text(
        "_base_ = ['distilled.py']\n"
        f'test_evaluator = [{{{{_base_.test_evaluator}}}}, {str([*metrics])[1:-1]}]\n'
    )
    return config


def test_a_segmentor(segmentation, tested, tmp_path):
    """The teacher of the config; one given by an option, here the student itself."""
    weights = tmp_path / 'student.pth'
    save_random_weights(segmentation / 'student.py', weights)
    config = beside(segmentation, AGREEMENT, LOCALIZATION, SIMILARITY)
    result = tested(
        config,
        weights,
        '--cfg-options',
        f'model.teacher.config={segmentation / "student.py"}',
        f'model.teacher.checkpoint={weights}',
        '--out',
        tmp_path / 'maps',
    )
    assert result['agreement/pixel'] == 100
    assert result['explanation/cosine'] == pytest.approx(1)
    assert 0 < result['localization/epg'] < 100
    assert 'mIoU' in result
    assert len(list((tmp_path / 'maps').glob('*.png'))) == 6


@needs_ops
def test_a_detector(detection, tested):
    """Student and teacher have the same weights here."""
    explainer = dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls', score_thr=0.0098)
    similarity = dict(SIMILARITY, explainer=explainer, tap='neck')
    config = beside(detection, dict(AGREEMENT, score_thr=0.01), similarity)
    result = tested(config, detection / 'teacher.pth')
    assert result['agreement/found'] == result['agreement/confirmed'] == 100
    assert 0 < result['explanation/cosine'] <= 1
    assert 'coco/bbox_mAP' in result


def test_metrics_of_a_validation_while_training(segmentation, tmp_path):
    """The teacher comes from the config, and the model from a hook that need not be written."""
    config = beside(segmentation, AGREEMENT, SIMILARITY)
    text = config.read_text().replace('test_evaluator =', 'val_evaluator =')
    config.write_text(text.replace('_base_.test_evaluator', '_base_.val_evaluator'))
    options = 'train_cfg.max_iters=2', 'train_cfg.val_interval=1'
    arguments = config, '--work-dir', tmp_path / 'run', '--cfg-options', *options
    log = run_tool('train', *arguments, cwd=segmentation)
    for name, low, high in (('agreement/pixel', 0, 100), ('explanation/cosine', -1, 1)):
        scores = [float(found) for found in re.findall(rf'{name}: (\S+)', log)]
        assert len(scores) == 2 and all(low <= score <= high for score in scores)


# --- whose teacher ------------------------------------------------------------------------------

TEACHER = dict(config='t.py', checkpoint='t.pth')
OWN = dict(
    type='mmkd_plugin.SelfTeacher', tap='backbone', neck=dict(type='mmkd_plugin.BiFPNSelfTeacher')
)


def completed(distilled: dict | list | None, **metric: object) -> dict:
    cfg = Config(dict(test_evaluator=[dict(type='IoUMetric'), dict(AGREEMENT, **metric)]))
    complete_metrics(cfg, None if distilled is None else Config(dict(teacher=distilled)))
    return cfg.test_evaluator[1].teacher


def test_the_only_trained_teacher():
    assert completed(TEACHER) == dict(TEACHER, name='teacher')
    assert completed([dict(TEACHER, name='large'), dict(OWN, name='own')])['name'] == 'large'


def test_one_of_several_by_its_name():
    two = [dict(TEACHER, name='large'), dict(TEACHER, name='old', config='o.py')]
    assert completed(two, teacher='old')['config'] == 'o.py'
    for wrong in (dict(), dict(teacher='odl')):
        with pytest.raises(UsageError, match=r"teacher='large' \(there are large, old\)"):
            completed(two, **wrong)


def test_a_teacher_of_its_own():
    other = dict(config='o.py', checkpoint='o.pth')
    assert completed(TEACHER, teacher=other) == other
    assert completed(None, teacher=other) == other


def test_no_teacher_to_take():
    with pytest.raises(UsageError, match=r'or a config that distils'):
        completed(None)
    for gone in (OWN, dict(type='mmkd_plugin.CachedTeacher', path='cache')):
        with pytest.raises(UsageError, match=r'trained and can run alone: teacher=dict\(config'):
            completed(gone)


def test_misspelt():
    with pytest.raises(ValueError, match=r'unknown key `score_th`; did you mean `score_thr`\?'):
        completed(TEACHER, score_th=0.5)
    with pytest.raises(UsageError, match=r'did you mean mmkd_plugin\.TeacherAgreement\?'):
        completed(TEACHER, type='mmkd_plugin.TeacherAgrement')


def test_one_metric_and_none():
    cfg = Config(dict(test_evaluator=dict(AGREEMENT)))
    complete_metrics(cfg, Config(dict(teacher=TEACHER)))
    assert cfg.test_evaluator.teacher.config == 't.py'
    complete_metrics(Config(dict()), None)


def test_the_model_is_handed_on_only_if_wanted():
    hook, other = dict(type='mmkd_plugin.ModelForMetrics'), dict(type='EMAHook')
    cfg = Config(dict(test_evaluator=dict(LOCALIZATION), custom_hooks=[other]))
    cfg.test_dataloader = dict(dataset=dict(pipeline=[]))
    complete_metrics(cfg, None)
    assert cfg.custom_hooks == [other, hook]
    complete_metrics(cfg, None)
    assert cfg.custom_hooks == [other, hook]
    cfg = Config(dict(test_evaluator=dict(type='IoUMetric')))
    complete_metrics(cfg, None)
    assert 'custom_hooks' not in cfg


def test_boxes_that_follow_a_resize():
    load, annotations = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
    resize = dict(type='mmdet.Resize')
    for pipeline, right in (
        ([load, resize, annotations], True),
        ([load, annotations], True),
        ([load, annotations, resize], False),
    ):
        dataset = dict(type='RepeatDataset', dataset=dict(pipeline=pipeline))
        cfg = Config(dict(default_scope='mmdet', test_evaluator=[dict(LOCALIZATION)]))
        cfg.test_dataloader = dict(dataset=dataset)
        if right:
            complete_metrics(cfg, None)
            continue
        with pytest.raises(UsageError, match=r'LoadAnnotations belongs behind mmdet\.Resize'):
            complete_metrics(cfg, None)


def test_errors_are_one_line(fails, segmentation, tmp_path):
    weights = tmp_path / 'student.pth'
    save_random_weights(segmentation / 'student.py', weights)
    args = ('test', beside(segmentation, AGREEMENT), weights, '--work-dir', tmp_path)
    options = ('--cfg-options', 'model.teacher.checkpoint=/gone.pth')
    assert 'no checkpoint at /gone.pth' in fails(*args, *options)
    assert '--tta: mmkd_plugin.TeacherAgreement' in fails(*args, '--tta')
    beside(segmentation, dict(LOCALIZATION, tap='backbone.layer5'))
    assert "the model has no module 'backbone.layer5'" in fails(*args)
