"""Configs of MMRazor become configs of ours that are short, build, and take a step."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

from benchmarks import mmrazor
from mmkd_plugin.cli import UsageError
from mmkd_plugin.migrating import NotPossible
from mmkd_plugin.migrating.mmrazor import read_distillation, refuse_theirs
from mmkd_plugin.migrating.names import current_name
from tests.runs import needs_ops
from tests.test_configs import fit_for_a_test, packed_inputs
from tests.tools.tool_runs import load_tool

TOOL = load_tool('from_mmrazor')


def shipped() -> Iterator[Path]:
    """The dense-prediction configs in the wheel of MMRazor."""
    try:
        root = mmrazor.folder().parents[1] / '.mim' / 'configs' / 'distill'
    except mmrazor.NotInstalled:
        return
    for library in ('mmdet', 'mmseg'):
        yield from sorted((root / library).rglob('*.py'))


SHIPPED = list(shipped())
#: The others are stepped by FAMILIES=all.
STEPPED = SHIPPED if os.environ.get('FAMILIES') == 'all' else SHIPPED[:1] + SHIPPED[-1:]

PAIR = dict(from_student=True, recorder='a'), dict(from_student=False, recorder='a')
RECORDER = dict(a=dict(type='ModuleOutputs', source='neck'))


def config(**changes: object) -> Config:
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=RECORDER,
        teacher_recorders=RECORDER,
        distill_losses=dict(loss=dict(type='PKDLoss')),
        loss_forward_mappings=dict(loss=dict(preds_S=PAIR[0], preds_T=PAIR[1])),
    )
    model = dict(
        type='SingleTeacherDistill',
        architecture=dict(cfg_path='mmseg::a.py', pretrained=False),
        teacher=dict(cfg_path='mmseg::b.py'),
        teacher_ckpt='t.pth',
        distiller=distiller,
    )
    cfg = Config(dict(model=copy.deepcopy(model)))
    cfg.merge_from_dict(changes)
    return cfg


@needs_ops
@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_becomes_a_short_one(path: Path, tmp_path: Path) -> None:
    text = TOOL.converted(str(path))
    assert len(text.splitlines()) < 20 and 'mmrazor.' not in text and 'RazorVis' not in text
    (tmp_path / 'ours.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'ours.py')
    theirs = Config.fromfile(path)
    losses = theirs.model.distiller.distill_losses
    (term,) = cfg.model.distill.values()
    assert len(term.tap if isinstance(term.tap, list) else [term.tap]) == len(losses)
    assert cfg.model.teacher.checkpoint == theirs.model.teacher_ckpt
    for key in ('optim_wrapper', 'param_scheduler', 'train_dataloader'):
        assert plain(cfg[key]) == plain(theirs[key])


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key != '_scope_'}
    return [*map(plain, value)] if isinstance(value, (list, tuple)) else value


@needs_ops
@pytest.mark.usefixtures('counters')
@pytest.mark.parametrize('path', STEPPED, ids=lambda path: path.stem)
def test_a_shipped_config_takes_a_step(path: Path, tmp_path: Path) -> None:
    (tmp_path / 'ours.py').write_text(TOOL.converted(str(path)))
    cfg = Config.fromfile(tmp_path / 'ours.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(fit_for_a_test(cfg.model))
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    logs = model.train().train_step(packed_inputs(cfg.default_scope), optimizer)
    for name in cfg.model.distill:
        assert 0 < logs[f'distill.{name}.loss'] < float('inf')


def test_what_is_read():
    found = read_distillation(config())
    assert (found.student, found.teacher, found.checkpoint) == (
        'mmseg::a.py',
        'mmseg::b.py',
        't.pth',
    )
    (term,) = found.terms.values()
    assert (list(found.terms), term.student, term.teacher) == (['pkd'], ['neck'], ['neck'])
    assert found.task and found.notes == []
    inputs = config(**{'model.distiller.student_recorders.a.type': 'ModuleInputs'})
    inputs.model.distiller.loss_forward_mappings.loss.preds_S.data_idx = 1
    assert read_distillation(inputs).terms['pkd'].student == ['neck[1]@input']
    alone = read_distillation(config(**{'model.calculate_student_loss': False}))
    assert not alone.task
    trained = config(
        **{
            'model.teacher_trainable': True,
            'model.teacher_norm_eval': False,
            'model.architecture.pretrained': True,
        }
    )
    assert [note.partition(':')[0] for note in read_distillation(trained).notes] == [
        'model.architecture.pretrained=True',
        'teacher_trainable=True has no counterpart',
        'teacher_norm_eval=False has no counterpart',
    ]


def test_losses_of_two_kinds_are_two_terms():
    cfg = config()
    distiller = cfg.model.distiller
    distiller.distill_losses.other = dict(type='ChannelWiseDivergence', tau=1)
    distiller.distill_losses.third = dict(type='ChannelWiseDivergence', tau=4)
    mapping = distiller.loss_forward_mappings.loss
    distiller.loss_forward_mappings |= dict(other=mapping, third=mapping)
    assert list(read_distillation(cfg).terms) == ['pkd', 'cwd', 'cwd2']


@pytest.mark.parametrize(
    ('changes', 'error', 'told'),
    [
        ({'model.type': 'DCFF'}, UsageError, "model.type='DCFF': expected SingleTeacherDistill"),
        (
            {'model.type': 'mmrazor.SelfDistill'},
            NotPossible,
            r"learns from itself through a neck: teacher=dict\(type='mmkd_plugin.SelfTeacher'",
        ),
        ({'model.distiller.distill_losses': dict(_delete_=True)}, NotPossible, 'no distill_losses'),
        (
            {'model.distiller.distill_deliveries': dict(a=1)},
            NotPossible,
            'distill_deliveries replaces results inside the models',
        ),
        (
            {'model.distiller.student_recorders.a.type': 'MethodOutputs'},
            NotPossible,
            'student_recorders.a: MethodOutputs keeps what is no input or output',
        ),
        (
            {'model.distiller.loss_forward_mappings.loss.preds_S.recorder': 'b'},
            UsageError,
            r"there is no student_recorders\['b'\]",
        ),
        (
            {'model.distiller.loss_forward_mappings.loss.preds_S.connector': 'b'},
            UsageError,
            r"there is no connectors\['b'\]",
        ),
        (
            {'model.distiller.loss_forward_mappings.loss.preds_S.from_student': False},
            NotPossible,
            'reads two maps of one model',
        ),
        (
            {'model.distiller.distill_losses.loss.weight': 6},
            NotPossible,
            'distill_losses.loss: PKDLoss has no argument `weight`; did you mean `loss_weight`',
        ),
        (
            {'model.calculate_student_los': False},
            ValueError,
            'unknown key `calculate_student_los`; did you mean `calculate_student_loss`',
        ),
        (
            {'model.distiller.student_recorder': {}},
            ValueError,
            'distiller has an unknown key `student_recorder`; did you mean `student_recorders`',
        ),
        (
            {'model.distiller.distill_losses.los': dict(type='PKDLoss')},
            UsageError,
            'loss_forward_mappings has no `los`, which says what distill_losses.los compares; did '
            'you mean `loss`',
        ),
        (
            {'model.distiller.student_recorders.a.type': 'ModuleOutput'},
            NotPossible,
            'did you mean `ModuleOutputs`',
        ),
        (
            {'model.distiller.distill_losses.loss.type': 'ChannelwiseDivergence'},
            NotPossible,
            'did you mean `ChannelWiseDivergence`',
        ),
        (
            {
                'model.distiller.loss_forward_mappings.loss.preds_S.from_student': False,
                'model.distiller.loss_forward_mappings.loss.preds_T.from_student': True,
            },
            NotPossible,
            'loss.preds_S does not come from the student, and ours compares the other way round: '
            'write from_student=True',
        ),
        (
            {'model.distiller.distill_losses.loss.type': 'WSLD'},
            NotPossible,
            'distill_losses.loss: the loss WSLD has no counterpart',
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(changes: dict, error: type, told: str) -> None:
    cfg = config(**changes)
    if changes.get('model.distiller.distill_losses'):
        cfg.model.distiller.distill_losses = {}
    with pytest.raises(error, match=told) as found:
        read_distillation(cfg)
    assert '\n' not in str(found.value)


@needs_ops
def test_old_names_of_shipped_configs():
    new = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    assert current_name('mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py') == new
    assert current_name('mmdet::nothing/of_this.py') == 'mmdet::nothing/of_this.py'
    assert current_name('my/student.py') == 'my/student.py'


def test_one_that_is_trained_as_it_is_is_told_how():
    message = "'SingleTeacherDistill' is an algorithm of MMRazor; `mmkd from-mmrazor kd.py ours.py`"
    with pytest.raises(UsageError, match=message):
        refuse_theirs(config(), 'kd.py')
    refuse_theirs(Config(dict(model=dict(type='EncoderDecoder'))), 'kd.py')


def test_a_config_in_another_folder_finds_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'theirs.py').write_text(THEIRS)
    (tmp_path / 'student.py').write_text("model = dict(type='EncoderDecoder')\n")
    (tmp_path / 'sub').mkdir()
    text = TOOL.converted('theirs.py', folder=Path('sub'))
    (tmp_path / 'sub' / 'ours.py').write_text(text)
    assert "_base_ = ['../student.py']" in text
    assert Config.fromfile('sub/ours.py').model.student.type == 'EncoderDecoder'
    assert "_base_ = ['student.py']" in TOOL.converted('theirs.py')


THEIRS = """\
sides = dict(decode=dict(type='ModuleOutputs', source='decode_head.conv_seg'))
model = dict(
    type='SingleTeacherDistill',
    architecture=dict(cfg_path='student.py'),
    teacher=dict(cfg_path='student.py'),
    teacher_ckpt='t.pth',
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=sides,
        teacher_recorders=sides,
        distill_losses=dict(cwd=dict(type='ChannelWiseDivergence')),
        loss_forward_mappings=dict(
            cwd=dict(
                preds_S=dict(from_student=True, recorder='decode'),
                preds_T=dict(from_student=False, recorder='decode'),
            )
        ),
    ),
)
"""
