"""mmengine's pure-Python configs: ``type`` is a class, in the config of a teacher and of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.cache.images import kind_of, loading_part
from mmkd_plugin.cli import is_distilled, is_own, read_config
from mmkd_plugin.teachers.online import OnlineTeacher
from tests.tools.tool_runs import run_tool

IMPORTS = """from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import LoadAnnotations, PackSegInputs
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.models import (CrossEntropyLoss, EncoderDecoder, FCNHead, ResNetV1c,
                          SegDataPreProcessor)
"""

DISTILLED = """from mmengine.config import read_base
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.losses import ChannelWiseLoss
from mmkd_plugin.visualization import DistillVisualizationHook

with read_base():
    from .student import *

student = model
model = dict(type=Distiller, student=student,
             teacher=dict(config={teacher!r}, checkpoint={checkpoint!r}),
             distill=dict(cwd=dict(tap='decode_head.conv_seg',
                                   loss=dict(type=ChannelWiseLoss, tau=4, loss_weight=3))))
custom_hooks = [dict(type=DistillVisualizationHook)]
"""


@pytest.fixture(scope='module')
def folder(segmentation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs of a distillation, with a class in place of each name that can be imported."""
    folder = tmp_path_factory.mktemp('pure_python')
    names = re.findall(r'\b[A-Z]\w+', IMPORTS)
    for config in ('student', 'teacher'):
        text = read_config(str(segmentation / f'{config}.py')).pretty_text
        for name in names:
            text = text.replace(f"type='{name}'", f'type={name}')
        (folder / f'{config}.py').write_text(IMPORTS + text)
    text = DISTILLED.format(
        teacher=str(folder / 'teacher.py'), checkpoint=str(segmentation / 'teacher.pth')
    )
    (folder / 'distilled.py').write_text(text)
    run_tool('train', 'distilled.py', '--work-dir', folder / 'run', cwd=folder)
    return folder


def test_it_trains_and_can_be_trained_from_the_config_that_the_run_saved(folder, tmp_path):
    saved = folder / 'run' / 'distilled.py'
    printed = run_tool('train', saved, '--work-dir', tmp_path, cwd=folder)
    assert 'distill.cwd.loss' in printed and 'Iter(train) [4/4]' in printed


@pytest.mark.parametrize('config', ['distilled.py', 'run/distilled.py'])
def test_its_student_is_exported_for_stock_tools(config, folder, tmp_path, call_tool):
    out = tmp_path / 'student.pth'
    call_tool('export_student', folder / config, folder / 'run' / 'iter_4.pth', out)
    assert 'mmkd' not in out.with_suffix('.py').read_text()

    from mmseg.apis import init_model

    assert Config.fromfile(out.with_suffix('.py')).model.decode_head.num_classes == 3
    init_model(str(out.with_suffix('.py')), str(out), device='cpu')


def test_its_student_is_tested(folder, tmp_path, call_tool):
    weights = folder / 'run' / 'iter_4.pth'
    call_tool(
        'test', folder / 'distilled.py', weights, '--out', tmp_path / 'maps', '--work-dir', tmp_path
    )
    assert len(list((tmp_path / 'maps').iterdir())) == 6


def test_it_is_visualized(folder, tmp_path, call_tool):
    weights = folder / 'run' / 'iter_4.pth'
    call_tool(
        'visualize',
        folder / 'distilled.py',
        weights,
        '--out',
        tmp_path / 'page',
        '--count',
        1,
        '--panels',
        'predictions',
    )
    assert (tmp_path / 'page' / 'index.html').is_file()


def test_a_class_is_known_where_its_name_is(folder):
    cfg = Config.fromfile(folder / 'distilled.py')  # as mmengine reads it
    assert isinstance(cfg.model.type, type)
    assert is_distilled(cfg) and is_own(cfg.custom_hooks[0]) and not is_own(cfg.val_evaluator)
    loaded = loading_part(cfg.train_dataloader.dataset.pipeline)
    assert [kind_of(step) for step in loaded] == ['LoadImageFromFile']
    teacher = OnlineTeacher(str(folder / 'distilled.py'), None)  # the student of that run
    assert type(teacher.model).__name__ == 'EncoderDecoder'
    teacher = OnlineTeacher(cfg.student, None)
    assert teacher.source == 'EncoderDecoder'
