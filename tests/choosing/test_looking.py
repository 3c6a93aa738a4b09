"""What is found in real models, and that a Distiller takes the choice."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin.choosing import Level, Look, ScoreMap, choose, look_at_student, look_at_teacher
from tests import stock_models
from tests.runs import HAS_OPS, needs_ops
from tests.stock_models import batch, build, distiller

CPU = torch.device('cpu')


def look(model: dict, classes: tuple | None = None) -> Look:
    return look_at_student(build(model), classes, CPU)


def pair(student: dict, teacher: dict) -> tuple[Look, Look]:
    model = build(student)
    theirs = look_at_teacher(build(teacher), None, CPU, model.data_preprocessor)
    return look_at_student(model, None, CPU), theirs


def test_a_segmentor():
    names = tuple('abcde')
    found = look(stock_models.pspnet(), names)
    assert found.scores == ScoreMap('decode_head.conv_seg', 5, 5)
    assert found.features == Level('decode_head.bottleneck', 16, 8.0)
    assert [level.stride for level in found.backbone] == [4, 8, 8, 8]
    assert not found.neck
    assert found.classes == names


def test_features_lie_before_dropout():
    model = stock_models.segformer()
    model['decode_head']['dropout_ratio'] = 0.5
    assert look(model).features == Level('decode_head.fusion_conv', 16, 4.0)
    model = stock_models.fcn()
    model['neck'] = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4)
    del model['decode_head']['num_convs']
    model['decode_head'].update(
        type='FPNHead',
        in_channels=[16] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        dropout_ratio=0.5,
    )  # it adds up the maps of its branches, which no module does
    assert look(model).features == Level('decode_head.dropout@input', 16, 4.0)


def test_the_last_head_of_a_cascade():
    assert look(stock_models.ocrnet()).scores.tap == 'decode_head.1.conv_seg'


@needs_ops
def test_a_detector():
    found = look(stock_models.retinanet())
    assert [level.stride for level in found.neck] == [8, 16, 32, 64, 128]
    assert {level.channels for level in found.neck} == {16}
    assert found.scores is None and found.features is None


def test_levels_that_do_not_learn():
    model = stock_models.fcn()
    model['backbone']['frozen_stages'] = 2
    assert [level.learns for level in look(model).backbone] == [False, False, True, True]


def test_branches_that_are_stacked_along_the_batch_are_no_levels():
    model = build(stock_models.fcn())
    model.backbone.register_forward_hook(lambda *args: tuple(torch.cat([x] * 3) for x in args[2]))
    assert not look_at_student(model, None, CPU).backbone


def test_a_look_changes_nothing():
    model = build(stock_models.pspnet())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    look_at_student(model, None, CPU)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_teacher_that_cannot_be_tried():
    class Broken(type(build(stock_models.fcn()))):
        def extract_feat(self, inputs):
            raise RuntimeError('no features today')

    model = build(stock_models.fcn())
    model.__class__ = Broken
    with pytest.raises(ValueError, match='made-up image: RuntimeError: no features today'):
        look_at_teacher(model, None, CPU, model.data_preprocessor)


PAIRS = {
    'one family': ('pspnet', 'pspnet', 'scores'),
    'two families': ('pspnet', 'segformer', 'scores'),
    'a head of several stages': ('fcn', 'ocrnet', 'scores'),
    'other classes': ('fcn', 'segformer, 7 classes', 'features'),
    'detectors': ('retinanet', 'retinanet', 'other neck'),
    'detectors of two families': ('fcos', 'faster_rcnn', 'other neck'),
    'queries': ('detr', 'detr', 'other neck'),
    'masks': ('mask2former', 'mask2former', 'backbone'),
}


@pytest.mark.skipif(not HAS_OPS, reason='mmcv has no compiled ops')
def test_a_pair_of_two_stage_detectors_trains_on_rois():
    student, teacher = stock_models.faster_rcnn(8), stock_models.cascade_rcnn(16)
    choice = choose(*pair(student, teacher), 'dkd')
    model = distiller(student, teacher, dict(dkd=choice.term))
    model.init_weights()
    assert model.train()(*batch(model), mode='loss')['distill.dkd.loss'] > 0


@pytest.mark.parametrize(('student', 'teacher', 'kind'), PAIRS.values(), ids=PAIRS)
def test_a_pair_trains(student, teacher, kind):
    name, _, classes = teacher.partition(', ')
    student = getattr(stock_models, student)(8)
    teacher = getattr(stock_models, name)(16, **(dict(classes=7) if classes else {}))
    if student['_scope_'] == 'mmdet' and not HAS_OPS:
        pytest.skip('mmcv has no compiled ops')
    choice = choose(*pair(student, teacher))
    assert choice.kind == kind
    model = distiller(student, teacher, {choice.method: choice.term})
    model.init_weights()
    losses = model.train()(*batch(model), mode='loss')
    assert losses[f'distill.{choice.method}.loss'] > 0
