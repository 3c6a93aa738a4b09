"""Configs in the layout of MMYOLO's distillation of RTMDet."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.migrating import NotPossible, read_file
from tests.migrating.made import TOOL, model_file, step
from tests.runs import needs_ops
from tests.stock_models import rtmdet

THEIRS = """
_base_ = './base.py'
norm_cfg = dict(type='BN', affine=False, track_running_stats=False)
recorders = {f'fpn{i}': dict(type='ModuleOutputs', source=f'neck.out_layers.{i}.conv')
             for i in range(3)}
connectors = {f'fpn{i}_s': dict(type='ConvModuleConnector', in_channel=8, out_channel=8, bias=False,
                                norm_cfg=norm_cfg, act_cfg=None) for i in range(3)}
connectors.update({f'fpn{i}_t': dict(type='NormConnector', in_channels=8, norm_cfg=norm_cfg)
                   for i in range(3)})
model = dict(
    _delete_=True, _scope_='mmrazor', type='FpnTeacherDistill',
    architecture=dict(cfg_path='mmyolo::rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco.py'),
    teacher=dict(cfg_path='mmyolo::rtmdet/rtmdet_s_syncbn_fast_8xb32-300e_coco.py'),
    teacher_ckpt='of_mmyolo.pth',
    distiller=dict(
        type='ConfigurableDistiller', student_recorders=recorders, teacher_recorders=recorders,
        connectors=connectors,
        distill_losses={f'loss_fpn{i}': dict(type='ChannelWiseDivergence', loss_weight=1)
                        for i in range(3)},
        loss_forward_mappings={f'loss_fpn{i}': dict(
            preds_S=dict(from_student=True, recorder=f'fpn{i}', connector=f'fpn{i}_s'),
            preds_T=dict(from_student=False, recorder=f'fpn{i}', connector=f'fpn{i}_t'))
            for i in range(3)}))
custom_hooks = [dict(type='mmrazor.StopDistillHook', stop_epoch=_base_.max_epochs - 20)]
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / 'base.py').write_text("max_epochs = 300\nmodel = dict(type='YOLODetector')\n")
    (tmp_path / 'kd.py').write_text(THEIRS)
    return tmp_path / 'kd.py'


@needs_ops
@pytest.mark.usefixtures('counters')
def test_the_models_are_those_of_mmdetection(theirs: Path) -> None:
    text = TOOL.converted(str(theirs))
    assert len(text.splitlines()) < 20
    (theirs.parent / 'ours.py').write_text(text)
    cfg = Config.fromfile(theirs.parent / 'ours.py')
    assert cfg.model.student.type == 'RTMDet' and cfg.train_cfg.max_epochs == 300
    assert cfg.model.teacher.config == 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
    assert 'rtmdet_s_8xb32-300e_coco/rtmdet_s_8xb32-300e_coco_' in cfg.model.teacher.checkpoint
    assert all('mmrazor' not in str(hook['type']) for hook in cfg.custom_hooks)
    term = cfg.model.distill.cwd
    assert term.tap == [f'neck.out_convs.{i}.conv' for i in range(3)]
    assert term.connector == dict(type='mmkd_plugin.ConvConnector', bias=False)
    assert term.loss == dict(
        type='mmkd_plugin.ChannelWiseLoss', tau=1.0, standardize=True, loss_weight=1
    )
    assert term.schedule == dict(stop=280, by_epoch=True)
    tiny = rtmdet()
    step(
        text.replace('neck.out_convs', 'neck.fpn_convs')
        .replace(
            'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
            model_file(theirs.parent, 'tiny', tiny),
        )
        .replace('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', str(theirs.parent / 'tiny.py')),
        theirs.parent,
    )


@needs_ops
@pytest.mark.parametrize(
    ('old', 'new', 'told'),
    [
        ('rtmdet/rtmdet_tiny_syncbn', 'yolov5/yolov5_s', 'is no RTMDet of mmdetection'),
        ('neck.out_layers', 'neck.top_down_layers', 'mmdetection names its modules differently'),
        ("'ChannelWiseDivergence'", "'PKDV2'", 'the loss PKDV2 has no counterpart'),
        ('affine=False, ', '', 'connectors: ConvModuleConnector of the student, NormConnector'),
    ],
)
def test_what_cannot_be_done_is_one_line(theirs: Path, old: str, new: str, told: str) -> None:
    theirs.write_text(theirs.read_text().replace(old, new))
    with pytest.raises(NotPossible, match=told) as found:
        read_file(theirs)
    assert '\n' not in str(found.value)
