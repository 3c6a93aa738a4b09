"""The choice for a pair, as a function of what both models show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmkd_plugin.choosing import METHODS, HeadForm, Level, Look, QueryForm, ScoreMap, choose
from mmkd_plugin.choosing.choosing import matching_levels
from mmkd_plugin.choosing.methods import NAMES
from mmkd_plugin.registry import MODELS
from mmkd_plugin.words import type_name


def levels(root: str, *strides: float, channels: int = 256, idle: tuple = ()) -> tuple[Level, ...]:
    return tuple(
        Level(f'{root}[{i}]', channels, stride, i not in idle) for i, stride in enumerate(strides)
    )


def segmentor(classes: int = 19, names=None, at: str = 'decode_head.conv_seg', each=None) -> Look:
    return Look(
        scores=ScoreMap(at, classes, each or classes),
        features=Level('decode_head.bottleneck', 512, 8.0),
        backbone=levels('backbone', 4, 8, 8, 8),
        classes=names,
    )


def detector(*strides: float, channels: int = 256, idle: tuple = ()) -> Look:
    return Look(
        neck=levels('neck', *strides, channels=channels, idle=idle),
        backbone=levels('backbone', 4, 8, 16, 32, channels=channels),
    )


def one_stage(*strides: float, form: tuple = ('RetinaHead',), names=None, channels=256) -> Look:
    look = detector(*strides, channels=channels)
    return replace(look, head=HeadForm('bbox_head', form), classes=names)


def with_neck(channels: int = 256) -> Look:
    return replace(segmentor(), neck=levels('neck', 4, 8, 16, 32, channels=channels))


def decoder(*strides: float, form: str = 'boxes', names=None, answers: str = 'boxes') -> Look:
    return Look(
        neck=levels('neck', *strides),
        backbone=levels('backbone', 8, 16, 32),
        queries=QueryForm(form, 2, answers),
        classes=names,
    )


def two_stage(*taps: str, classes: int = 80, names=None) -> Look:
    rois = tuple(ScoreMap(tap, classes, classes + 1) for tap in taps)
    return Look(neck=levels('neck', *PYRAMID), rois=rois, classes=names)


PYRAMID = 8, 16, 32, 64, 128
ROAD, CAR, SKY = 'road', 'car', 'sky'

CASES = {
    'the same classes': (
        (segmentor(), segmentor()),
        ('scores', 'cwd', dict(tap='decode_head.conv_seg')),
    ),
    'another head': (
        (segmentor(), segmentor(at='decode_head.1.conv_seg')),
        (
            'scores',
            'cwd',
            dict(student_tap='decode_head.conv_seg', teacher_tap='decode_head.1.conv_seg'),
        ),
    ),
    'another number of classes': (
        (segmentor(19), segmentor(150)),
        ('features', 'cwd', dict(tap='decode_head.bottleneck')),
    ),
    'other names': (
        (segmentor(2, (ROAD, CAR)), segmentor(2, (ROAD, SKY))),
        ('features', 'cwd', dict(tap='decode_head.bottleneck')),
    ),
    'another order': (
        (segmentor(2, (ROAD, CAR)), segmentor(2, (CAR, ROAD))),
        ('scores', 'cwd', dict(tap='decode_head.conv_seg')),
    ),
    'another order, one score for two classes': (
        (segmentor(2, (ROAD, CAR), each=1), segmentor(2, (CAR, ROAD), each=1)),
        ('features', 'cwd', dict(tap='decode_head.bottleneck')),
    ),
    'more classes, the own among them': (
        (segmentor(2, (ROAD, CAR)), segmentor(3, (CAR, SKY, ROAD))),
        ('scores', 'cwd', dict(tap='decode_head.conv_seg')),
    ),
    'one score against two': (
        (segmentor(2, each=1), segmentor(2)),
        ('features', 'cwd', dict(tap='decode_head.bottleneck')),
    ),
    'no features in one': (
        (segmentor(19), Look(backbone=levels('backbone', 16, 16))),
        ('backbone', 'pkd', dict(student_tap='backbone[3]', teacher_tap='backbone[1]')),
    ),
    'two pyramids': ((detector(*PYRAMID), detector(*PYRAMID)), ('neck', 'cwd', dict(tap='neck'))),
    'other channels': (
        (detector(*PYRAMID, channels=96), detector(*PYRAMID)),
        ('other neck', 'pkd', dict(tap='neck')),
    ),
    'other strides': (
        (detector(*PYRAMID), detector(4, 8, 16)),
        (
            'neck',
            'cwd',
            dict(student_tap=['neck[0]', 'neck[1]'], teacher_tap=['neck[1]', 'neck[2]']),
        ),
    ),
    'a level that does not learn': (
        (detector(8, 16, 32, idle=(0,)), detector(8, 16, 32)),
        ('neck', 'cwd', dict(tap=['neck[1]', 'neck[2]'])),
    ),
    'no neck in one': (
        (detector(*PYRAMID), Look(backbone=levels('backbone', 4, 8, 16, 32))),
        ('backbone', 'pkd', dict(tap='backbone')),
    ),
    'decoders': ((decoder(8, 16), decoder(8, 16)), ('neck', 'cwd', dict(tap='neck'))),
    'decoders, and no neck in one': (
        (decoder(8, 16), decoder()),
        ('queries', 'kd_detr', dict(queries=dict(random=300))),
    ),
    'decoders that answer masks, and no neck in one': (
        (decoder(8, answers='masks'), decoder(answers='masks')),
        ('mask queries', 'shared_masks', dict(queries=dict(random=0, student=True))),
    ),
    'decoders with other queries': (
        (decoder(8, 16), decoder(form='points')),
        ('backbone', 'pkd', dict(tap='backbone')),
    ),
    'decoders of classes in another order': (
        (decoder(8, names=(CAR, SKY)), decoder(names=(SKY, CAR))),
        ('backbone', 'pkd', dict(tap='backbone')),
    ),
    'a single map': (
        (
            Look(backbone=(Level('backbone', 64, 32.0),)),
            Look(backbone=(Level('backbone', 64, 32.0),)),
        ),
        ('backbone', 'pkd', dict(tap='backbone')),
    ),
}


BESIDE = {
    'scores, and a neck': ((with_neck(), with_neck(64)), ['cwd', 'pkd']),
    'scores, and no neck': ((segmentor(), segmentor()), ['cwd', 'pkd']),
    'scores, and a backbone that is frozen': (
        (replace(segmentor(), backbone=levels('backbone', 4, 8, idle=(0, 1))), segmentor()),
        ['cwd'],
    ),
    'a neck, and heads of one form': ((one_stage(*PYRAMID), one_stage(*PYRAMID)), ['cwd', 'bckd']),
    'a neck of other channels': (
        (one_stage(*PYRAMID), one_stage(*PYRAMID, channels=96)),
        ['pkd', 'bckd'],
    ),
    'heads of two forms': ((one_stage(8, 16), one_stage(8, 16, form=('GFLHead',))), ['cwd']),
    'other classes': (
        (one_stage(8, 16, names=(ROAD, CAR)), one_stage(8, 16, names=(CAR, ROAD))),
        ['cwd'],
    ),
}


@pytest.mark.parametrize(('pair', 'terms'), BESIDE.values(), ids=BESIDE)
def test_what_comes_beside(pair, terms):
    choice = choose(*pair)
    assert list(choice.terms) == terms and choice.why.count('; and ') == len(choice.beside)
    assert all(term['loss']['loss_weight'] == 'auto' for term in choice.terms.values())
    assert list(choose(*pair, terms[0]).terms) == terms[:1]  # a named one comes alone


@pytest.mark.parametrize(('pair', 'expected'), CASES.values(), ids=CASES)
def test_what_is_chosen(pair, expected):
    choice = choose(*pair)
    taps = {key: value for key, value in choice.term.items() if key != 'loss'}
    assert (choice.kind, choice.method, taps) == expected
    assert choice.term['loss'] == {
        **METHODS[choice.kind][choice.method].loss,
        'loss_weight': 'auto',
    }
    assert choice.why.startswith(NAMES[choice.kind])


def test_the_reason_names_classes_that_differ():
    assert 'because the classes differ' in choose(segmentor(19), segmentor(150)).why
    assert 'classes differ' not in choose(segmentor(), segmentor()).why
    assert 'classes differ' not in choose(segmentor(), segmentor(), 'at').why


@pytest.mark.parametrize(
    ('look', 'method', 'kind'),
    [
        (segmentor(), 'pixel_wise', 'scores'),
        (segmentor(), 'pkd', 'features'),
        (segmentor(), 'cwd', 'scores'),
        (decoder(8, 16), 'kd_detr', 'queries'),
    ],
)
def test_another_method(look, method, kind):
    choice = choose(look, look, method)
    assert (choice.method, choice.kind) == (method, kind)


ROI, FIRST, SECOND = 'roi_head.bbox_head.fc_cls', 'roi_head.0.fc_cls', 'roi_head.1.fc_cls'


@pytest.mark.parametrize(
    ('student', 'teacher', 'taps'),
    [
        ((ROI,), (ROI,), dict(tap=ROI)),
        ((FIRST, SECOND), (FIRST, SECOND), dict(tap=[FIRST, SECOND])),
        ((ROI,), (FIRST, SECOND), dict(student_tap=ROI, teacher_tap=FIRST)),
    ],
)
def test_roi_heads_are_compared_if_asked_for(student, teacher, taps):
    pair = two_stage(*student), two_stage(*teacher)
    assert choose(*pair).kind == 'neck'
    choice = choose(*pair, 'dkd')
    assert choice.kind == 'rois' and choice.term == {**taps, 'loss': choice.term['loss']}


def test_roi_heads_of_other_classes_are_not_compared():
    with pytest.raises(ValueError, match='dkd compares nothing that both models have'):
        choose(two_stage(ROI), two_stage(ROI, classes=20), 'dkd')


def test_methods_that_do_not_exist_or_do_not_fit():
    with pytest.raises(ValueError, match=r'no method pkdd; did you mean `pkd`\? \(known: cwd, '):
        choose(segmentor(), segmentor(), 'pkdd')
    with pytest.raises(ValueError, match=r'pixel_wise compares nothing .* there are cwd, pkd, at'):
        choose(detector(*PYRAMID), detector(*PYRAMID), 'pixel_wise')


@pytest.mark.parametrize(
    ('pair', 'method', 'reason'),
    [
        ((segmentor(19), segmentor(150)), 'pixel_wise', 'because the classes differ'),
        ((two_stage(ROI), two_stage(ROI, classes=20)), 'dkd', 'because the classes differ'),
        (
            (decoder(8), decoder(8, form='points')),
            'kd_detr',
            'queries that are boxes, the .* points',
        ),
        (
            (decoder(8, names=(CAR, SKY)), decoder(8, names=(SKY, CAR))),
            'kd_detr',
            'because the classes differ',
        ),
        (
            (one_stage(8), one_stage(8, form=('GFLHead',))),
            'bckd',
            'because their heads or classes differ',
        ),
        ((detector(8), one_stage(8)), 'bckd', 'models have; for these two there are cwd'),
    ],
)
def test_why_a_method_does_not_fit(pair, method, reason):
    with pytest.raises(ValueError, match=f'{method} compares nothing that both .*{reason}'):
        choose(*pair, method)


def test_a_pair_with_nothing_in_common_is_told_what_to_write():
    with pytest.raises(ValueError) as caught:
        choose(Look(), segmentor())
    message = str(caught.value)
    assert 'the student has no maps that were recognised' in message
    assert "the teacher has class scores at 'decode_head.conv_seg'" in message
    assert 'student_tap=' in message and 'docs/taps.md' in message
    assert '\n' not in message


def test_levels_without_a_common_stride_give_their_last_ones():
    ours, theirs = levels('backbone', 4, 8), levels('backbone', 14, 14)
    assert matching_levels(ours, theirs) == [(ours[1], theirs[1])]


def test_stages_of_backbones_belong_together_in_order():
    dilated, plain = levels('backbone', 4, 8, 8, 8), levels('backbone', 4, 8, 16, 32)
    assert matching_levels(dilated, plain) == [(dilated[0], plain[0]), (dilated[3], plain[1])]
    assert matching_levels(dilated, plain, in_order=True) == list(zip(dilated, plain))
    assert choose(Look(backbone=dilated), Look(backbone=plain)).term['tap'] == 'backbone'


def test_strides_may_be_rounded():
    ours, theirs = levels('neck', 8, 16.1), levels('neck', 16)
    assert matching_levels(ours, theirs) == [(ours[1], theirs[0])]


def test_the_table():
    assert set(METHODS) == set(NAMES)
    for methods in METHODS.values():
        for method in methods.values():
            loss = MODELS.build(dict(method.loss))
            assert type(loss).__name__ == type_name(method.loss['type'])
            assert method.why
