"""Terms that ask the decoders of both models once more, with the same queries."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmkd_plugin.queries import Queries
from mmkd_plugin.teachers.classes import classes_of_the_student
from tests import stock_models
from tests.runs import Record, assert_same, config, needs_ops, save_weights, train
from tests.stock_models import batch, distiller

pytestmark = [pytest.mark.usefixtures('counters'), needs_ops]

LOSS = dict(type='mmkd_plugin.SharedQueriesLoss')


def detectors(teacher=None, student=None, **line):
    """KD-DETR on small detectors, with 7 queries of the teacher and 6 of the student."""
    line = {'queries': dict(random=5), 'loss': LOSS, **line}
    teacher = teacher or stock_models.dab_detr(16, queries=7)
    student = student or stock_models.dab_detr()
    model = distiller(student, teacher, dict(kd=line))
    model.teachers['teacher'].model.init_weights()
    model.init_weights()
    return model.train()


def given_to(model):
    """What the loss of the term gets from now on."""
    given = []
    model.distill.kd.loss.register_forward_pre_hook(lambda _, args: given.append(args))
    return given


def test_both_are_asked_the_teachers_queries_and_random_ones():
    model = detectors()
    given = given_to(model)
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    ((students, teachers),) = given
    assert [tuple(x.shape) for x in students] == [
        (2, 2, 7, 4),
        (2, 2, 7, 4),
        (2, 2, 5, 4),
        (2, 2, 5, 4),
    ]
    assert [tuple(x.shape) for x in teachers] == [
        (1, 2, 7, 4),
        (1, 2, 7, 4),
        (1, 2, 5, 4),
        (1, 2, 5, 4),
    ]
    assert all(x.requires_grad for x in students) and not any(x.requires_grad for x in teachers)


def test_the_teachers_queries_give_what_the_teacher_predicts():
    teacher = dict(
        config=stock_models.dab_detr(16, queries=7),
        checkpoint=None,
        inference=dict(precision='fp32', fuse_conv_bn=False),
    )
    model = detectors(teacher)
    given = given_to(model)
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    frozen = model.teachers['teacher'].model
    with torch.no_grad():
        scores, boxes = frozen(inputs, samples, mode='tensor')
    torch.testing.assert_close(given[0][1][0], scores[-1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given[0][1][1], boxes[-1:], rtol=1e-4, atol=1e-5)


def test_a_student_that_is_the_teacher_has_nothing_to_learn():
    model = detectors(stock_models.dab_detr())
    model.student.load_state_dict(model.teachers['teacher'].model.state_dict(), strict=False)
    model.eval()
    inputs, samples = batch(model)
    given = given_to(model)
    model(inputs, samples, mode='loss')
    students, teachers = given[0]
    for student, teacher in zip(students, teachers):
        torch.testing.assert_close(student[-1:], teacher, rtol=5e-2, atol=5e-2)


def test_random_queries_are_new_in_each_iteration_and_known_again(counters):
    same, again, other = (Queries(random=1000).drawn(torch.tensor(x), 4) for x in (1, 1, 2))
    assert torch.equal(same, again) and not torch.equal(same, other)
    assert same.mean().abs() < 0.1 and (same.std() - 1).abs() < 0.1
    model = detectors()
    inputs, samples = batch(model)
    given = given_to(model)
    for number in (0, 0, 1):
        counters.update_info('iter', number)
        model(inputs, samples, mode='loss')
    first, second, third = (x[1][3] for x in given)
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_it_teaches_the_student_and_leaves_the_teacher():
    model = detectors()
    frozen = model.teachers['teacher'].model
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    before = copy.deepcopy(frozen.state_dict())
    own = {name: p.detach().clone() for name, p in model.student.named_parameters()}
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    values = []
    for _ in range(4):
        losses = model(inputs, samples, mode='loss')
        values.append(losses['distill.kd.loss'].item())
        optimizer.update_params(losses['distill.kd.loss'])
    assert values[-1] < values[0]
    assert_same(dict(before), dict(frozen.state_dict()))
    moved = {
        name.partition('.')[0]
        for name, p in model.student.named_parameters()
        if not torch.equal(own[name], p)
    }
    assert {'backbone', 'neck', 'encoder', 'decoder', 'bbox_head'} <= moved
    assert all(p.grad is None for p in frozen.parameters())


def test_the_student_trains_as_it_would_alone():
    model = detectors()
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert set(losses) == {*alone, 'distill.kd.loss'}
    for key, value in alone.items():
        torch.testing.assert_close(losses[key], value)


@pytest.mark.parametrize(
    ('queries', 'counts'), [(dict(random=0), [7]), (dict(random=4, learnt=False), [4])]
)
def test_one_group_alone(queries, counts):
    model = detectors(queries=queries)
    given = given_to(model)
    model(*batch(model), mode='loss')
    assert [x.shape[2] for x in given[0][0][::2]] == counts


def test_the_weight_can_find_itself_and_mixed_precision():
    model = detectors(loss=dict(LOSS, loss_weight='auto'))
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*batch(model), mode='loss')
    assert model.distill.kd.auto.weight > 0
    assert losses['distill.kd.loss'].dtype == torch.float32
    assert losses['distill.kd.loss'].isfinite()


def test_the_students_own_queries_are_asked_as_they_are():
    model = detectors(queries=dict(random=0, student=True))
    boxes = model.student.query_embedding.weight.detach().clone()
    given = given_to(model)
    model(*batch(model), mode='loss')
    ((students, teachers),) = given
    assert [x.shape[2] for x in students] == [7, 7, 6, 6] == [x.shape[2] for x in teachers]
    model.distill.kd.loss(students[2:], teachers[2:]).backward()
    assert model.student.query_embedding.weight.grad is None
    assert torch.equal(model.student.query_embedding.weight, boxes)
    alone = copy.deepcopy(model.student).eval()
    for one in alone.modules():
        one.training = isinstance(one, torch.nn.BatchNorm2d)
    with torch.no_grad():
        scores, _ = alone(*batch(model), mode='tensor')
    torch.testing.assert_close(students[2], scores, rtol=1e-4, atol=1e-5)


def test_a_student_that_selects_its_queries_asks_those_without_noise():
    model = detectors(
        stock_models.dino(16, queries=7), stock_models.dino(), queries=dict(random=0, student=True)
    )
    given = given_to(model)
    model(*batch(model), mode='loss')['distill.kd.loss'].backward()
    assert [x.shape[2] for x in given[0][0]] == [7, 7, 6, 6]


def test_the_plan_says_what_it_costs():
    work = detectors().teachers['teacher'].work()
    told = "its decoder, and the one of the student, are asked again: the teacher's queries and 5"
    assert f'{told} random ones (7 + 5)' in work
    work = detectors(queries=dict(random=5, student=True)).teachers['teacher'].work()
    assert "the teacher's queries, 5 random ones and the student's (7 + 5 + 6)" in work
    assert str(Queries(0, False, True)) == "the student's queries"


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (dict(tap='neck'), 'distill.kd has `tap` beside `queries`'),
        (dict(queries=5), r'distill.kd.queries: expected dict\(random=300, learnt=True\), got 5'),
        (dict(queries=dict(randon=5)), 'unknown key `randon`; did you mean `random`?'),
        (dict(queries=dict(random=-1)), 'distill.kd.queries.random must be a whole number'),
        (dict(queries=dict(learnt=1)), 'distill.kd.queries.learnt must be True or False'),
        (dict(queries=dict(student=1)), 'distill.kd.queries.student must be True or False'),
        (dict(queries=dict(random=0, learnt=False)), 'leave no query'),
        (dict(loss=stock_models.cwd()), 'ChannelWiseLoss does not compare the answers of decoders'),
        (
            dict(connector=dict(type='mmkd_plugin.ConvConnector')),
            'has `connector` beside `queries`',
        ),
        (dict(through='neck'), 'has `through` beside `queries`'),
        (
            dict(teacher=stock_models.dab_detr(16, classes=3)),
            'numbers of classes differ: student 4, teacher 3',
        ),
        (
            dict(teacher=stock_models.retinanet()),
            r"teacher 'teacher' \(RetinaNet\) has no queries that both models .* tap='neck'",
        ),
        (
            dict(student=stock_models.retinanet()),
            r"the student \(RetinaNet\) has no queries that both models .* tap='neck'",
        ),
        (
            dict(teacher=stock_models.detr()),
            r'the student \(DABDETR\) takes boxes, and .* teacher are 16 learnt numbers each',
        ),
        (
            dict(teacher=stock_models.detr(16), student=stock_models.detr()),
            r'the student \(DETR\) takes 16 learnt numbers each, of DETR, and .* are 32 learnt',
        ),
        (
            dict(student=stock_models.deformable_detr()),
            r'the student \(DeformableDETR\) takes points with 512 learnt numbers each, of '
            'Deformable DETR, and the queries of the teacher are boxes',
        ),
        (
            dict(teacher=stock_models.conditional_detr()),
            r'the student \(DABDETR\) takes boxes, and .* of the teacher are points with 256',
        ),
    ],
)
def test_mistakes_are_named_at_build_time(line, message):
    with pytest.raises(ValueError, match=message):
        detectors(**line)


def test_classes_in_another_order():
    teacher = dict(config=stock_models.dab_detr(16), checkpoint=None, classes=('b', 'a', 'c', 'd'))
    with classes_of_the_student(tuple('abcd')):
        with pytest.raises(ValueError, match=r'distill.kd: .* or the same in another order'):
            detectors(teacher)
        detectors(dict(teacher, classes=tuple('abcd')))


@pytest.mark.usefixtures('own_globals')
@pytest.mark.parametrize('kind', ['boxes', 'masks'])
def test_a_resumed_run_is_the_run_that_never_ended(kind, data, tmp_path):
    if kind == 'boxes':
        loss, make = LOSS, partial(stock_models.dab_detr, classes=2)
    else:
        loss = dict(type='mmkd_plugin.SharedMasksLoss', points=40)
        make = partial(stock_models.mask2former_segmentor, classes=3)
    student, teacher = make(), make(queries=7)
    model = dict(
        _scope_=student['_scope_'],
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=teacher, checkpoint=save_weights(teacher, tmp_path / 'teacher.pth')),
        distill=dict(kd=dict(queries=dict(random=5), loss=loss)),
    )
    first, second = Record(), Record()
    train(config(model, data, tmp_path / 'whole', 4, save_every=2), first, resumable=True)
    half = str(tmp_path / 'whole' / 'iter_2.pth')
    rest = config(model, data, tmp_path / 'rest', 4, load_from=half, resume=True)
    train(rest, second, resumable=True)
    assert_same(second.losses, first.losses[2:])
    assert second.losses[0]['distill.kd.loss'] > 0
