"""Students that start with weights of a teacher."""

from __future__ import annotations

import copy

import pytest
import torch

from mmkd_plugin.teachers.classes import classes_of_the_student
from tests import stock_models
from tests.runs import Record, assert_same, config, needs_ops, save_weights, train
from tests.stock_models import cwd, distiller

pytestmark = pytest.mark.usefixtures('counters')

TERM = dict(cwd=dict(tap='decode_head.conv_seg', loss=cwd()))


def started(parts, student=None, teacher=None, seed=0, **kwargs):
    """A Distiller after its initialisation."""
    student, teacher = student or stock_models.pspnet(), teacher or stock_models.pspnet()
    model = distiller(
        student, teacher, kwargs.pop('terms', TERM), seed, init_student_from_teacher=parts, **kwargs
    )
    model.init_weights()
    return model


def weights(model, part):
    return {k: v for k, v in model.state_dict().items() if k.startswith(f'{part}.')}


def test_the_named_parts_are_the_teachers_and_the_others_its_own():
    model = started(['decode_head', 'backbone.layer1'])
    alone = started(None)
    teacher = distiller(stock_models.pspnet(), stock_models.pspnet(), TERM).teachers['teacher']
    parts = dict.fromkeys(['decode_head', 'backbone.layer1'], teacher.model)
    parts |= dict.fromkeys(['backbone.layer2', 'backbone.stem'], alone.student)
    for part, source in parts.items():
        assert_same(weights(model.student, part), weights(source, part))


def test_weights_are_those_before_batch_norms_are_folded():
    inference = dict(precision='fp32', fuse_conv_bn=True)
    teacher = dict(config=stock_models.pspnet(), checkpoint=None, inference=inference)
    model = started(['decode_head'], teacher=teacher)
    assert 'fused' in model.teachers['teacher'].work()
    folded = model.teachers['teacher'].model.decode_head.bottleneck
    ours = model.student.decode_head.bottleneck
    assert folded.conv.bias is not None and ours.conv.bias is None
    torch.testing.assert_close(
        folded.conv.weight,
        ours.conv.weight / (1 + ours.bn.eps) ** 0.5 * ours.bn.weight.view(-1, 1, 1, 1),
    )


def test_what_does_not_fit_stays():
    student, teacher = stock_models.pspnet(classes=5), stock_models.pspnet(classes=7)
    terms = dict(cwd=dict(tap='decode_head.bottleneck', loss=cwd()))
    model = started(['decode_head'], student, teacher, terms=terms)
    theirs = model.teachers['teacher'].model.decode_head
    assert torch.equal(model.student.decode_head.bottleneck.bn.weight, theirs.bottleneck.bn.weight)
    assert model.student.decode_head.conv_seg.weight.shape[0] == 5
    told = "weights of 'decode_head' from teacher 'teacher'; these keep their own: "
    assert told + 'decode_head.conv_seg.weight, decode_head.conv_seg.bias' in str(model._start)


def test_a_student_learns_apart_from_its_teacher():
    model = started(['decode_head'])
    before = copy.deepcopy(model.teachers['teacher'].model.decode_head.conv_seg.weight)
    with torch.no_grad():
        model.student.decode_head.conv_seg.weight.add_(1)
    assert torch.equal(model.teachers['teacher'].model.decode_head.conv_seg.weight, before)


def test_nothing_else_changes():
    """Random numbers, names and the plan are those without it."""
    ours, alone = started(['decode_head']), started(None)
    assert list(ours.state_dict()) == list(alone.state_dict())
    assert str(alone._start) == ''
    assert_same(weights(ours.student, 'backbone'), weights(alone.student, 'backbone'))


def test_of_several_teachers_each_gives_its_part():
    teachers = [
        dict(name=name, config=stock_models.pspnet(), checkpoint=None) for name in ('a', 'b')
    ]
    terms = {name: dict(TERM['cwd'], teacher=name) for name in ('a', 'b')}
    parts = dict(a=['decode_head'], b=['backbone'])
    model = started(parts, teacher=teachers, terms=terms)
    for name, (part,) in parts.items():
        source = distiller(stock_models.pspnet(), teachers, terms).teachers[name].model
        assert_same(weights(model.student, part), weights(source, part))
    with pytest.raises(ValueError, match=r'there are 2 teachers; say which one: .*dict\(a='):
        started(['neck'], teacher=teachers, terms=terms)
    with pytest.raises(ValueError, match="no term learns from a teacher 'c'"):
        started(dict(c=['neck']), teacher=teachers, terms=terms)


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        (['decode_haed'], "the student has no module 'decode_haed'. Closest: decode_head"),
        (['decode_head', ''], 'must be a list of modules'),
        ('decode_head', 'must be a list of modules'),
        ([], 'must be a list of modules'),
        ({}, 'must be a list of modules'),
        ([5], 'must be a list of modules'),
        (dict(teacher='decode_head'), 'must be a list of modules'),
        (dict(techer=['decode_head']), "a teacher 'techer'; did you mean 'teacher'?"),
        (
            ['backbone.layer1'],
            r"no weight of 'backbone.layer1' of teacher 'teacher' fits the student: "
            r"'backbone.layer1.0.conv1.weight' is \(8, 8, 3, 3\) in the student and "
            r"\(16, 16, 3, 3\) in the teacher; leave 'backbone.layer1' out",
        ),
    ],
)
def test_mistakes_are_named_at_build_time(parts, message):
    with pytest.raises(ValueError, match=f'init_student_from_teacher.*{message}'):
        started(parts, teacher=stock_models.pspnet(16))


def test_a_teacher_without_weights():
    teacher = dict(
        type='mmkd_plugin.SelfTeacher',
        tap=['backbone.layer3', 'backbone.layer4'],
        neck=dict(type='mmkd_plugin.BiFPNSegSelfTeacher'),
    )
    with pytest.raises(ValueError, match="teacher 'self_teacher' is no trained model with weights"):
        started(['decode_head'], teacher=teacher)


@pytest.mark.parametrize(
    ('theirs', 'part', 'fits'),
    [
        (('a', 'b', 'c', 'd', 'e'), 'decode_head', True),
        (('b', 'a', 'c', 'd', 'e'), 'decode_head', False),
        (('b', 'a', 'c', 'd', 'e'), 'backbone', True),
        (('v', 'w', 'x', 'y', 'z'), 'decode_head', False),
    ],
)
def test_scores_of_other_classes_are_not_copied(theirs, part, fits):
    teacher = dict(config=stock_models.pspnet(), checkpoint=None, classes=theirs)
    terms = dict(cwd=dict(tap='decode_head.bottleneck', loss=cwd()))
    with classes_of_the_student(tuple('abcde')):
        if fits:
            started([part], teacher=teacher, terms=terms)
            return
        with pytest.raises(ValueError, match='scores other classes than those of the student'):
            started([part], teacher=teacher, terms=terms)


# Runs ---------------------------------------------------------------------------------------------


def run_config(data, tmp_path, name, parts, length=2, **changes):
    teacher = stock_models.retinanet(8, classes=3)
    model = dict(
        _scope_='mmdet',
        type='mmkd_plugin.Distiller',
        student=stock_models.retinanet(8, classes=3),
        teacher=dict(config=teacher, checkpoint=save_weights(teacher, tmp_path / 'teacher.pth')),
        distill=dict(cwd=dict(tap='neck', loss=cwd())),
        init_student_from_teacher=parts,
    )
    return config(model, data, tmp_path / name, length, **changes)


@needs_ops
@pytest.mark.usefixtures('own_globals')
def test_a_run_starts_with_them_and_a_resumed_one_goes_on(data, tmp_path):
    parts = ['neck', 'bbox_head']
    train(run_config(data, tmp_path, 'whole', parts, 4, save_every=2), first := Record())
    file = torch.load(tmp_path / 'teacher.pth', weights_only=True)
    given = {k: v for k, v in file['state_dict'].items() if k.split('.')[0] in parts}
    assert given
    assert_same({key: first.start[key] for key in given}, given)
    half = str(tmp_path / 'whole' / 'iter_2.pth')
    train(
        run_config(data, tmp_path, 'rest', parts, 4, load_from=half, resume=True),
        second := Record(),
    )
    assert_same(second.losses, first.losses[2:])
    saved = torch.load(half, weights_only=False)['state_dict']
    assert_same({key: second.start[key] for key in saved}, dict(saved))


@needs_ops
@pytest.mark.usefixtures('own_globals')
def test_load_from_comes_after_it(data, tmp_path):
    student = save_weights(stock_models.retinanet(8, classes=3), tmp_path / 'student.pth', seed=3)
    cfg = run_config(data, tmp_path, 'loaded', ['neck'], load_from=student)
    train(cfg, record := Record())
    file = torch.load(student, weights_only=True)['state_dict']
    assert_same({key: record.start[key] for key in file}, dict(file))
