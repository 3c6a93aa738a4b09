"""The ``teacher`` of a config, and a new kind of teacher in one file."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers import Batch, Lesson, OnlineTeacher, Preview, Teacher, Trial
from mmkd_plugin.teachers.configs import build_teacher, kind_of_teacher, teacher_configs
from mmkd_plugin.views import View
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, cwd, distiller


@MODELS.register_module()
class BrighterTeacher(Teacher):
    """Teaches the student's own map, times a factor: all that a new kind of teacher has to have.

    Args:
        tap (str): What it reads in the student and shows.
        factor (float): The factor. Defaults to 2.0.
        name (str): What terms and messages call it. Defaults to ``'brighter'``.
    """

    source = 'the student'

    def __init__(self, tap: str, factor: float = 2.0, name: str = 'brighter') -> None:
        self.student_taps = (Tap.parse(tap),)
        self.factor = factor
        self.name = name

    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        maps = student.run.values
        return Preview(maps, {view: view.of(maps) for view in views}, {}, student.run.size)

    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        return Lesson({view: view.of(batch.student) * self.factor for view in views})

    def work(self) -> str:
        return f"teacher '{self.name}': the student's map times {self.factor:g}"


def test_a_new_kind_teaches(log):
    term = dict(tap='backbone.layer4', loss=dict(type='mmkd_plugin.HintLoss'))
    teacher = dict(type='mmkd_plugin.BrighterTeacher', tap='backbone.layer4', factor=3.0)
    model = distiller(stock_models.fcn(), [dict(teacher, name='own')], dict(hint=term)).train()
    inputs, samples = batch(model)
    features = model.student.extract_feat(inputs)[3]
    loss = model(inputs, samples, mode='loss')['distill.hint.loss']
    torch.testing.assert_close(loss, (2 * features).pow(2).mean(), rtol=1e-3, atol=0)
    assert any("teacher 'own': the student's map times 3" in text for text in log.messages)
    assert copy.deepcopy(model).teachers['own'] is model.teachers['own']


def test_one_that_does_not_know_its_batch_norms():
    line = dict(tap='backbone.layer4', loss=dict(type='mmkd_plugin.OverhaulLoss'))
    teacher = dict(type='mmkd_plugin.BrighterTeacher', tap='backbone.layer4')
    with pytest.raises(
        ValueError, match=r"batch norm that feeds 'backbone\.layer4'.*none was found"
    ):
        distiller(stock_models.fcn(), teacher, dict(ofd=line))


def test_its_keys_are_those_of_its_constructor():
    with pytest.raises(ValueError, match='unknown key `facter`; did you mean `factor`'):
        teacher_configs(dict(type='BrighterTeacher', tap='neck', facter=3))
    (config,) = teacher_configs(dict(type='BrighterTeacher', tap='neck', factor=3)).values()
    assert config['name'] == 'brighter' and build_teacher(config).factor == 3
    with pytest.raises(ValueError, match='teacher has no `tap`'):
        teacher_configs(dict(type='mmkd_plugin.BrighterTeacher'))


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ('mmkd_plugin.CashedTeacher', 'mmkd_plugin.CachedTeacher'),
        ('SelfTeecher', 'mmkd_plugin.SelfTeacher'),
        ('BriterTeacher', 'mmkd_plugin.BrighterTeacher'),
        ('mmkd_plugin.ChannelWiseLoss', None),
        ('mmkd_plugin.Teacher', 'mmkd_plugin.SelfTeacher'),
        ('', None),
        (' .', None),
        (nn.Conv2d, None),
        (5, None),
    ],
)
def test_a_wrong_type_gets_the_nearest_name(given, meant):
    with pytest.raises(ValueError, match='which is not a kind of teacher') as raised:
        kind_of_teacher(dict(type=given))
    text = str(raised.value)
    assert text.startswith(f'teacher has type={given!r}') and 'mmkd_plugin.OnlineTeacher' in text
    assert ('did you mean' in text) == (meant is not None)
    assert meant is None or f'did you mean {meant!r}?' in text


def test_without_a_type_it_runs_beside_the_student():
    assert kind_of_teacher(dict(config='x', checkpoint=None)) is OnlineTeacher
    assert kind_of_teacher(dict(type='OnlineTeacher')) is OnlineTeacher


@pytest.mark.parametrize(
    ('teacher', 'words'),
    [
        ([], 'teacher is an empty list'),
        (dict(checkpoint=None), "teacher has no `config`: a path, 'mmseg::...' or a model dict"),
        (dict(config='x'), 'teacher has no `checkpoint`: a file or URL of its trained weights'),
        (
            [dict(config='x', checkpoint=None)],
            'with several teachers each needs a `name` of its own',
        ),
        (dict(config='x', chekpoint=None), 'unknown key `chekpoint`; did you mean `checkpoint`'),
    ],
)
def test_mistakes(teacher, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        teacher_configs(teacher)


@pytest.mark.parametrize(
    ('keys', 'kinds'),
    [
        (dict(factor=3), "type='mmkd_plugin.BrighterTeacher'"),
        (dict(type='SelfTeacher', factor=3), "type='mmkd_plugin.BrighterTeacher'"),
        (dict(factor=3, depth=2), None),
        (dict(factor=3, checkpoit=None), None),
    ],
)
def test_the_kind_that_takes_unknown_keys_is_named(keys, kinds):
    with pytest.raises(ValueError, match=r'^teacher has an unknown key `factor`') as raised:
        teacher_configs(keys)
    assert (f'`factor`; a teacher with {kinds} takes it (known: ' in str(raised.value)) == (
        kinds is not None
    )
    assert ('a teacher with' in str(raised.value)) == (kinds is not None)


def test_several_teachers_as_a_dict_are_told_of_the_list():
    mit = dict(config='mit.py', checkpoint='mit.pth')
    told = r"unknown key `mit`; several teachers are a list: teacher=\[dict\(name='mit', \.\.\.\)\]"
    with pytest.raises(ValueError, match=told):
        teacher_configs(dict(mit=mit))


@pytest.mark.parametrize('kind', ['', ' ', '\0'])
def test_a_model_whose_type_is_no_name(kind):
    (config,) = teacher_configs(dict(config=stock_models.fcn(), checkpoint=None)).values()
    config['config']['type'] = kind
    told = r"^teacher 'teacher'\.config\.type must be the name of a class, got "
    with pytest.raises(ValueError, match=told):
        build_teacher(config)


def test_a_teacher_that_divides_its_images_by_zero():
    teacher = stock_models.fcn(16)
    teacher['data_preprocessor']['std'] = [1.0, 1.0, 0.0]
    told = r"^teacher 'teacher'\.config\.data_preprocessor\.std must be above 0 in all channels"
    with pytest.raises(ValueError, match=told):
        distiller(stock_models.fcn(), teacher, dict(cwd=dict(tap='backbone[3]', loss=cwd())))


@pytest.mark.parametrize(
    ('make', 'kind'),
    [
        (stock_models.fcn, 'SegDataPreProcessor'),
        pytest.param(stock_models.retinanet, 'DetDataPreprocessor', marks=needs_ops),
    ],
)
def test_a_teacher_that_does_not_say_how_images_are_normalised(make, kind):
    teacher = make(16)
    del teacher['data_preprocessor']
    told = rf"^teacher 'teacher'\.config has no `data_preprocessor`: .*type='{kind}', mean="
    with pytest.raises(ValueError, match=told):
        distiller(make(), teacher, dict(cwd=dict(tap='backbone[3]', loss=cwd())))


def test_teachers_that_learn_come_after_the_others():
    own = dict(
        type='mmkd_plugin.SelfTeacher',
        name='own',
        tap='backbone',
        neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=1),
    )
    large = dict(name='large', config=stock_models.fcn(16), checkpoint=None)
    terms = dict(cwd=dict(tap='decode_head.conv_seg', teacher='large', loss=cwd()))
    model = distiller(stock_models.fcn(), [own, large], terms)
    assert list(model.teachers) == ['large', 'own'] and list(model.self_teachers) == ['own']
    copied = copy.deepcopy(model)
    assert copied.teachers['large'] is model.teachers['large']
    assert copied.teachers['own'] is copied.self_teachers['own'] is not model.teachers['own']


@pytest.mark.parametrize('wrong', ['align_corner', 'ALIGN_CORNERS'])
def test_an_argument_of_a_part_of_its_model_is_told_with_the_part(wrong):
    model = stock_models.fcn()
    model['decode_head'][wrong] = False
    (config,) = teacher_configs(dict(config=model, checkpoint=None)).values()
    message = rf'decode_head: FCNHead has no argument `{wrong}`; did you mean `align_corners`'
    with pytest.raises(ValueError, match=rf"^teacher 'teacher'\.config\.{message}"):
        build_teacher(config)
