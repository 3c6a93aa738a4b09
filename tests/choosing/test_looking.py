"""What is found in real models, and that a Distiller takes the choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmkd_plugin.choosing import (
    Level,
    Look,
    QueryForm,
    ScoreMap,
    choose,
    look_at_student,
    look_at_teacher,
)
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
    assert found.scores == ScoreMap('class_scores', 5, 5)
    assert found.features == Level('class_scores@input', 16, 8.0)
    assert [level.stride for level in found.backbone] == [4, 8, 8, 8]
    assert not found.neck
    assert found.classes == names


@pytest.mark.parametrize('name', ['ocrnet', 'pointrend', 'segformer'])
def test_heads_of_other_kinds_have_the_same_names(name):
    found = look(getattr(stock_models, name)())
    assert found.scores == ScoreMap('class_scores', 5, 5)
    assert found.features.tap == 'class_scores@input' and found.features.learns


@needs_ops
def test_a_mask_classifier_has_class_scores_and_no_map_before_them():
    found = look(stock_models.mask2former())
    assert found.scores == ScoreMap('class_scores', 4, 4)
    assert found.features is None


def test_a_head_whose_scores_cannot_be_read_shows_its_levels():
    class Odd(type(build(stock_models.fcn()).decode_head)):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.own, self.conv_seg = self.conv_seg, None

        def forward(self, inputs):
            return dict(out=self.own(self._forward_feature(inputs)))

        def loss_by_feat(self, logits, samples):
            return super().loss_by_feat(logits['out'], samples)

    model = stock_models.fcn()
    model['decode_head']['type'] = Odd
    found = look(model)
    assert found.scores is None and len(found.backbone) == 4
    theirs = look_at_teacher(build(model), None, CPU, build(model).data_preprocessor)
    assert theirs.scores is None and len(theirs.backbone) == 4


@needs_ops
def test_a_detector():
    found = look(stock_models.retinanet())
    assert [level.stride for level in found.neck] == [8, 16, 32, 64, 128]
    assert {level.channels for level in found.neck} == {16}
    assert found.scores is None and found.features is None
    assert found.head == look(stock_models.retinanet(16)).head and found.head.tap == 'bbox_head'
    assert found.head.form != look(stock_models.retinanet(classes=3)).head.form
    assert look(stock_models.faster_rcnn()).head is None


@needs_ops
@pytest.mark.parametrize(
    ('name', 'form'),
    [
        ('mask2former', '32 learnt numbers each, of Mask2Former'),
        ('mask2former_segmentor', '32 learnt numbers each, of Mask2Former'),
        ('maskformer_segmentor', '16 learnt numbers each, of MaskFormer'),
    ],
)
def test_queries_of_mask_classifiers(name, form):
    make = getattr(stock_models, name)
    student, teacher = make(classes=4), make(classes=4, queries=7)
    ours, theirs = pair(student, teacher)
    assert ours.queries == theirs.queries == QueryForm(form, 4, 'masks')
    choice = choose(ours, theirs, 'shared_masks')
    choice.term['loss']['points'] = 40
    model = distiller(student, teacher, {choice.method: choice.term}).train()
    losses = model(*batch(model), mode='loss')
    assert losses['distill.shared_masks.loss'] > 0


@needs_ops
def test_queries_of_decoders():
    student = stock_models.deformable_detr(refine=True, two_stage=True)
    ours, theirs = pair(
        student, stock_models.dino(16, queries=400)
    )  # more than 128² has places for
    assert ours.queries == theirs.queries == QueryForm('boxes', 4)
    assert look(stock_models.detr()).queries.form == '16 learnt numbers each, of DETR'
    choice = choose(ours, theirs, 'kd_detr')
    model = distiller(student, stock_models.dino(16), {choice.method: choice.term})
    for part in (model, model.teachers['teacher'].model):  # which is raw memory in parts
        part.init_weights()
    losses = model.train()(*batch(model), mode='loss')
    assert losses['distill.kd_detr.loss'] > 0


def test_levels_that_do_not_learn():
    model = stock_models.fcn()
    model['backbone']['frozen_stages'] = 2
    assert [level.learns for level in look(model).backbone] == [False, False, True, True]


def test_branches_that_are_stacked_along_the_batch_are_no_levels():
    student, teacher = stock_models.fcn(), stock_models.fcn(16)
    student['backbone']['frozen_stages'] = 1
    model = build(student)
    model.backbone.layer4.register_forward_hook(lambda *args: torch.cat([args[2]] * 3))
    assert look_at_student(model, None, CPU).scores is None
    model.decode_head.conv_seg.register_forward_hook(lambda *args: args[2][:1])  # so it trains
    found = look_at_student(model, None, CPU)
    assert not found.backbone
    assert str(found).endswith("several maps for each image at 'backbone'")
    theirs = look_at_teacher(build(teacher), None, CPU, model.data_preprocessor)
    choice = choose(replace(found, scores=None), theirs)
    assert choice.kind == 'stages'
    assert choice.term['tap'] == ['backbone.layer2', 'backbone.layer3']  # the first is frozen


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
    'one family': ('pspnet', 'pspnet', 'scores', 'pkd'),
    'two families': ('pspnet', 'segformer', 'scores', 'pkd'),
    'a head of several stages': ('fcn', 'ocrnet', 'scores', 'pkd'),
    'other classes': ('fcn', 'segformer, 7 classes', 'features'),
    'detectors': ('retinanet', 'retinanet', 'other neck', 'bckd'),
    'detectors with centreness': ('fcos', 'fcos', 'other neck', 'bckd'),
    'those with anchors': ('atss', 'atss', 'other neck', 'bckd'),
    'detectors of two families': ('fcos', 'faster_rcnn', 'other neck'),
    'queries': ('detr', 'detr', 'other neck'),
    'masks': ('mask2former', 'mask2former', 'scores', 'pkd'),
    'points': ('pointrend', 'ocrnet', 'scores', 'pkd'),
}


@pytest.mark.skipif(not HAS_OPS, reason='mmcv has no compiled ops')
def test_a_pair_of_two_stage_detectors_trains_on_rois():
    student, teacher = stock_models.faster_rcnn(8), stock_models.cascade_rcnn(16)
    choice = choose(*pair(student, teacher), 'dkd')
    model = distiller(student, teacher, dict(dkd=choice.term))
    model.init_weights()
    assert model.train()(*batch(model), mode='loss')['distill.dkd.loss'] > 0


@pytest.mark.parametrize('pair_of', PAIRS.values(), ids=PAIRS)
def test_a_pair_trains(pair_of):
    student, teacher, kind, *beside = pair_of
    name, _, classes = teacher.partition(', ')
    student = getattr(stock_models, student)(8)
    teacher = getattr(stock_models, name)(16, **(dict(classes=7) if classes else {}))
    if student['_scope_'] == 'mmdet' and not HAS_OPS:
        pytest.skip('mmcv has no compiled ops')
    choice = choose(*pair(student, teacher))
    assert choice.kind == kind
    model = distiller(student, teacher, choice.terms)
    model.init_weights()
    losses = model.train()(*batch(model), mode='loss')
    assert all(losses[f'distill.{name}.loss'] > 0 for name in choice.terms)
    assert list(choice.beside) == beside
