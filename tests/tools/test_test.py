"""``tools/test.py`` on tiny data: the student alone, its predictions kept, wrong arguments."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.cli import read_config, use_student
from tests.runs import needs_ops
from tests.tools.tool_runs import load_tool, run_tool, start_tool


def result(work_dir: Path) -> dict[str, float]:
    """Read what mmengine wrote about the test."""
    (file,) = work_dir.glob('*/2*.json')
    return json.loads(file.read_text())


def test_the_student_of_a_segmentor_without_its_teacher(trained, segmentation, data, tmp_path):
    log = start_tool(
        'test',
        segmentation / 'distilled.py',
        trained / 'iter_4.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        tmp_path / 'maps',
        '--show-dir',
        tmp_path / 'painted',
        '--cfg-options',
        'model.teacher.checkpoint=/gone.pth',
        'model.teacher.config=/gone.py',
        'data_root=elsewhere',
        cwd=tmp_path,
    )
    assert 'using its student alone' in log
    assert '--cfg-options sets `data_root`, which nothing reads: test_dataloader.' in log
    # Validation at the last iteration and the test see the same weights: the averaged ones.
    validated = [json.loads(line) for line in scalars(trained) if 'mIoU' in line][-1]
    tested = result(tmp_path / 'test')
    assert {k: tested[k] for k in ('aAcc', 'mIoU')} == {k: validated[k] for k in ('aAcc', 'mIoU')}
    maps = [cv2.imread(str(tmp_path / f'maps/{i}.png'), cv2.IMREAD_UNCHANGED) for i in range(6)]
    masks = [cv2.imread(str(data / f'masks/{i}.png'), cv2.IMREAD_UNCHANGED) for i in range(6)]
    accuracy = 100 * np.mean(np.stack(maps) == np.stack(masks))
    assert accuracy == pytest.approx(tested['aAcc'], abs=0.01)
    assert list((tmp_path / 'painted').rglob('*.png'))


def scalars(work_dir: Path) -> list[str]:
    (file,) = work_dir.glob('2*/vis_data/scalars.json')
    return file.read_text().splitlines()


@needs_ops
def test_a_detector_with_flips_and_a_file_of_predictions(trained_detector, detection, tmp_path):
    run_tool(
        'test',
        detection / 'distilled.py',
        trained_detector / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        tmp_path / 'out.pkl',
        '--tta',
        cwd=tmp_path,
    )
    assert 'coco/bbox_mAP' in result(tmp_path / 'test')
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 6
    assert len(predictions[0]['pred_instances']['bboxes']) > 0


# --- without a subprocess ---------------------------------------------------------------------


def test_wrong_arguments(fails, segmentation, tmp_path):
    config, weights = segmentation / 'student.py', segmentation / 'teacher.pth'
    place = ('--work-dir', tmp_path)
    assert 'there is student.py' in fails('test', segmentation / 'studnt.py', weights)
    assert 'there is teacher.pth' in fails('test', config, segmentation / 'taecher.pth', *place)
    message = fails('test', config, weights, *place)
    assert 'does not fit the model' in message
    assert '--allow-partial accepts it' in message


def test_a_partial_checkpoint_only_when_asked_for(cfg, segmentation):
    tool = load_tool('test')
    init_default_scope(cfg.default_scope)
    runner = SimpleNamespace(model=MODELS.build(cfg.model))
    args = SimpleNamespace(checkpoint=str(segmentation / 'teacher.pth'), allow_partial=True)
    tool.check_fit(runner, args)
    args.allow_partial = False
    with pytest.raises(CheckpointError, match='does not fit the model'):
        tool.check_fit(runner, args)


@pytest.fixture
def cfg(segmentation: Path) -> Config:
    cfg = read_config(str(segmentation / 'distilled.py'))
    use_student(cfg)
    return cfg


def test_a_distilled_config_becomes_its_student(cfg, segmentation):
    plain = read_config(str(segmentation / 'student.py'))
    cfg.model.pop('_scope_', None)
    assert cfg.model == plain.model
    use_student(plain)
    assert cfg.model == plain.model


def test_a_preprocessor_at_the_top_moves_into_the_student():
    top, inner = dict(type='Top'), dict(type='Inner')
    model = dict(type='mmkd_plugin.Distiller', student=dict(type='S'))
    cfg = Config(dict(model=model, data_preprocessor=top))
    use_student(cfg)
    assert cfg.model == dict(type='S', data_preprocessor=top)
    model = dict(model, student=dict(type='S', data_preprocessor=inner))
    hooks = [dict(type='mmkd_plugin.SomeHook'), dict(type='EMAHook')]
    cfg = Config(dict(model=model, data_preprocessor=top, custom_hooks=hooks))
    use_student(cfg)
    assert cfg.model == dict(type='S', data_preprocessor=inner)
    assert cfg.custom_hooks == [dict(type='EMAHook')]


def test_tta_of_a_segmentor(cfg):
    student, dataset = cfg.model, cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=1, dataset=dataset)
    load_tool('test').use_tta(cfg)
    assert cfg.model.type == 'SegTTAModel'
    assert cfg.model.module == student
    assert cfg.test_dataloader.dataset.dataset.pipeline == cfg.tta_pipeline


def test_tta_needs_a_config(cfg):
    tool = load_tool('test')
    cfg.pop('tta_model')
    with pytest.raises(tool.UsageError, match='tta_model'):
        tool.use_tta(cfg)


def test_where_painted_images_go(cfg):
    tool = load_tool('test')
    args = Config(dict(show=True, show_dir='there', wait_time=3))
    tool.visualize(cfg, args)
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, True, 3)
    assert cfg.visualizer.save_dir == 'there'
    cfg.default_hooks.visualization.type = 'DetVisualizationHook'
    tool.visualize(cfg, args)
    assert cfg.default_hooks.visualization.test_out_dir == 'there'
    del cfg.default_hooks['visualization']
    with pytest.raises(tool.UsageError, match='visualization'):
        tool.visualize(cfg, args)


def test_label_maps_need_a_metric_that_writes_them(cfg):
    tool = load_tool('test')
    cfg.test_evaluator = [cfg.test_evaluator]
    tool.keep_label_maps(cfg, 'folder')
    assert cfg.test_evaluator[0].output_dir == 'folder'
    cfg.test_evaluator = dict(type='CocoMetric')
    with pytest.raises(tool.UsageError, match=r'\.pkl'):
        tool.keep_label_maps(cfg, 'folder')
