"""Parts of a Distiller from their configs: mistakes end it at build time, by the key."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope

from mmkd_plugin.building import build_module
from mmkd_plugin.registry import MODELS
from tests import stock_models
from tests.stock_models import build, cwd, distiller
from tests.test_distiller import FEATURES, LOGITS, OVERHAUL, two_teachers


def term(**changes):
    return dict(cwd={**LOGITS['cwd'], **changes})


@pytest.mark.parametrize(
    ('distill', 'message'),
    [
        (dict(), 'distill has no term: add one'),
        (LOGITS['cwd'], r'distill is a dict of named terms: write distill=dict\(cwd='),
        (dict(cwd=3), r'distill.cwd: expected dict\(tap='),
        ({'a.b': LOGITS['cwd']}, "distill.a.b: 'a.b' cannot name a term"),
        (term(taps='x'), 'distill.cwd has an unknown key `taps`; did you mean `tap`?'),
        (dict(cwd=dict(tap='neck')), r'distill.cwd has no `loss`: add loss=dict\(type='),
        (dict(cwd=dict(loss=cwd())), "distill.cwd has no tap: add tap='module.path'"),
        (dict(cwd=dict(student_tap='a', loss=cwd())), 'distill.cwd has no tap'),
        (term(tap='a[b]'), r"distill.cwd.tap: 'a\[b\]' is not a tap: expected"),
        (term(teacher='big'), "distill.cwd has teacher='big'; the teachers are: teacher"),
        (term(schedule=5), r'distill.cwd.schedule: expected dict\(start=..., ramp=...\), got 5'),
        (term(schedule=dict(begin=3)), 'distill.cwd.schedule has an unknown key `begin`'),
        (term(schedule=dict(start=3, stop=2)), r'distill.cwd.schedule: stop \(2\) must come after'),
        (
            term(loss=dict(type='mmkd_plugin.ChannelwiseLoss')),
            "distill.cwd.loss.type: there is no 'mmkd_plugin.ChannelwiseLoss'; did you mean "
            'mmkd_plugin.ChannelWiseLoss',
        ),
        (term(loss=cwd(temperature=4)), 'distill.cwd.loss has an unknown key `temperature`'),
        (term(loss=cwd(tau=0)), r'distill\.cwd\.loss\.tau must be above 0'),
        (term(loss='CWD'), "distill.cwd.loss: expected dict"),
        (term(loss=dict(type=' .')), "distill.cwd.loss.type must be the name of a class, got ' .'"),
        (term(connector=[None, None]), 'distill.cwd: 2 connectors for 1 maps'),
        (
            term(tap='decode_head.cls_seg'),
            "the student has no module 'decode_head.cls_seg'. Closest: decode_head.conv_seg",
        ),
        (
            term(teacher_tap='decode_head.cls_seg'),
            "teacher 'teacher' has no module 'decode_head.cls_seg'. Closest: decode_head.conv_seg",
        ),
        (
            term(tap='decode_head'),
            "the student has a module 'decode_head', but nothing can be read there: its parent "
            'calls its methods.*Inside it these run: .*decode_head.conv_seg',
        ),
        (term(tap='decode_head.loss_decode'), "teacher 'teacher' has a module .*it never runs"),
        (term(tap='decode_head.conv_seg[0]'), r'has no element \[0\]: it gives one tensor'),
    ],
)  # fmt: skip
def test_mistakes_in_a_term_are_named_at_build_time(distill, message):
    with pytest.raises(ValueError, match=message):
        distiller(stock_models.pspnet(), stock_models.pspnet(16), distill)


def test_a_package_that_refuses_to_be_imported(tmp_path, monkeypatch):
    (tmp_path / 'refusing').mkdir()
    (tmp_path / 'refusing' / '__init__.py').write_text("raise AssertionError('too old')")
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        r'^distill\.cwd\.loss: refusing cannot be imported: .*: too old; did you mean mmkd_plugin'
    )
    with pytest.raises(ValueError, match=words):
        build_module(dict(type='refusing.ChannelWiseDivergence'), 'distill.cwd.loss')


def at(model, place, **changes):
    """A model with other values in one of its parts, or at its top."""
    (model[place] if place else model).update(changes)
    return model


@pytest.mark.parametrize(
    ('place', 'changes', 'message'),
    [
        (
            '',
            dict(_scope_='mmsegg'),
            r'_scope_: no library `mmsegg` is .* mean `mmseg`\? \(known: ',
        ),
        ('', dict(_scope_='numpy'), r'_scope_: `numpy` has no registry of models \(known: .*mmseg'),
        (
            'decode_head',
            dict(_scope_='mmsge', type='Head'),
            r'_scope_: no library `mmsge` is installed; did you mean `mmseg`\?',
        ),
        ('decode_head', dict(type='FCNHed'), "type: there is no 'FCNHed'; did you mean "),
        ('decode_head', dict(type='x'), "type: there is no 'x'; expected the name of a class"),
        ('decode_head', dict(type=' .'), "type: there is no ' .'; expected the name of a class"),
        ('decode_head', dict(type=''), "type must be the name of a class, got ''"),
    ],
)
def test_a_class_that_is_not_found_is_named_with_where_it_is_looked_up(place, changes, message):
    message = rf'\.{place}\.{message}' if place else rf'\.{message}'
    with pytest.raises(ValueError, match=f'^student{message}'):
        distiller(at(stock_models.fcn(), place, **changes), stock_models.fcn(16), LOGITS)
    with pytest.raises(ValueError, match=rf"^teacher 'teacher'\.config{message}"):
        distiller(stock_models.fcn(), at(stock_models.fcn(16), place, **changes), LOGITS)


def test_a_loss_that_no_decode_head_can_call():
    student = stock_models.pspnet()
    student['decode_head']['loss_decode'] = dict(type='mmkd_plugin.HintLoss')
    words = r'^student\.decode_head\.loss_decode: HintLoss is no loss of a decode head'
    with pytest.raises(ValueError, match=words):
        distiller(student, stock_models.pspnet(), LOGITS)


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        (dict(checkpoint='x.pth'), 'teacher has no `config`'),
        (dict(config=stock_models.pspnet()), 'teacher has no `checkpoint`'),
        (
            dict(config=stock_models.pspnet(), ckpt='x', checkpoint=None),
            'teacher has an unknown key `ckpt`; did you mean `checkpoint`?',
        ),
        ([], 'teacher is an empty list'),
        (
            [dict(config=stock_models.pspnet(), checkpoint=None)] * 2,
            'each needs a `name` of its own',
        ),
    ],
)
def test_mistakes_in_the_teacher_are_named(teacher, message):
    with pytest.raises(ValueError, match=message):
        build(
            dict(
                _scope_='mmseg',
                type='mmkd_plugin.Distiller',
                student=stock_models.pspnet(),
                teacher=teacher,
                distill=LOGITS,
            )
        )


def test_a_term_has_to_say_which_of_two_teachers():
    with pytest.raises(
        ValueError, match=r'distill.cwd does not say which teacher; .*: wide, other'
    ):
        distiller(stock_models.pspnet(), two_teachers(), LOGITS)


def test_scores_of_other_classes_are_not_compared():
    message = "'decode_head.conv_seg' gives scores of 5 classes in the student and 7 in the teacher"
    with pytest.raises(ValueError, match=message):
        distiller(stock_models.pspnet(), stock_models.pspnet(16, classes=7), LOGITS)
    heads = dict(cwd=dict(tap='bbox_head.retina_cls', loss=cwd()))
    with pytest.raises(ValueError, match='scores of 4 classes in the student and 3 in the teacher'):
        distiller(stock_models.retinanet(), stock_models.retinanet(16, classes=3), heads)
    distiller(stock_models.pspnet(), stock_models.pspnet(16, classes=7), FEATURES)


def test_shapes_that_a_loss_cannot_take_are_named():
    distill = dict(cwd=dict(FEATURES['cwd'], connector=None))
    with pytest.raises(ValueError, match=r'distill.cwd: ChannelWiseLoss cannot compare .*16.*32'):
        distiller(stock_models.pspnet(), stock_models.pspnet(16), distill)


def test_other_numbers_of_levels_are_named():
    distill = dict(cwd=dict(tap='neck', loss=cwd()))
    teacher = stock_models.retinanet(16)
    teacher['neck']['num_outs'] = 4
    teacher['bbox_head']['anchor_generator']['strides'] = [8, 16, 32, 64]
    with pytest.raises(ValueError, match="'neck' gives 5 maps in the student and 'neck' 4 in the"):
        distiller(stock_models.retinanet(), teacher, distill)


def test_a_teacher_without_a_term_is_not_built():
    model = distiller(
        stock_models.pspnet(), two_teachers(), dict(a=dict(LOGITS['cwd'], teacher='wide'))
    )
    assert list(model.teachers) == ['wide']


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        (dict(weight=1), 'task has an unknown key `weight`; did you mean `loss_weight`'),
        (dict(loss_weight=-1), r'task\.loss_weight cannot be negative'),
        (dict(loss_weight='1'), r'task\.loss_weight must be a number'),
        (dict(schedule=dict(begin=1)), r'task\.schedule has an unknown key `begin`'),
        (dict(schedule=3), r'task\.schedule: expected dict'),
        (0.5, 'task: expected dict'),
    ],
)
def test_a_task_that_cannot_be_read(task, message):
    with pytest.raises(ValueError, match=message):
        distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS, task=task)


def test_a_connector_of_ones_own_gets_its_channels():
    distill = dict(
        cwd=dict(FEATURES['cwd'], connector=dict(type='mmkd_plugin.ConvConnector', kernel_size=3))
    )
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), distill)
    assert model.distill.cwd.describe_connectors() == '3×3 conv 16→32'


STAGE_CONVS = [f'backbone.layer{number}.0.conv1' for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(norm=['backbone.layer1.1.bm2'] * 4), 'backbone.layer1.1.bn2'),
        (dict(norm=['backbone.layer1.1.conv2'] * 4), "'backbone.layer1.1.conv2' is a Conv2d"),
        (dict(norm='backbone.layer1.1.bn2'), 'norm has 1 names for 4 maps'),
        (dict(tap=['backbone.conv1', *STAGE_CONVS]), r"none was found\. Name it: norm='"),
    ],
)
def test_a_margin_without_a_norm(change, message):
    with pytest.raises(ValueError, match=message):
        distiller(stock_models.fcn(), stock_models.fcn(16), dict(ofd=dict(OVERHAUL, **change)))


def test_a_name_of_the_library_that_the_config_means():
    """A name of ours comes first, then that of the ``default_scope``."""
    neck = dict(type='FPN', in_channels=[8, 8], out_channels=8, num_outs=2)
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert type(build_module(neck, 'neck')).__module__.startswith('mmseg.')
        assert build_module(dict(type='ChannelWiseLoss', tau=1), 'loss').tau == 1
        with pytest.raises(ValueError, match=r"^neck\.type: there is no 'FNP'"):
            build_module(dict(type='FNP'), 'neck')
    outside = DefaultScope.overwrite_default_scope('mmengine')
    with outside, pytest.raises(ValueError, match=r"^neck\.type: there is no 'FPN'"):
        build_module(neck, 'neck')


class Fixed(torch.nn.Conv2d):
    """A connector that knows its channels."""

    def __init__(self) -> None:
        super().__init__(8, 16, 1)


def test_a_class_without_parameters_gets_none():
    MODELS.register_module(module=Fixed, force=True)
    try:
        made = build_module(dict(type='Fixed'), 'connector', dict(in_channels=4, out_channels=5))
    finally:
        MODELS.module_dict.pop('Fixed')
    assert made.weight.shape == (16, 8, 1, 1)
    with pytest.raises(ValueError, match='connector has an unknown key `size`'):
        build_module(dict(type=Fixed, size=3), 'connector')
