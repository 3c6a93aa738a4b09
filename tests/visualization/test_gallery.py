"""The choice of pictures, and their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.taps import Taps
from mmkd_plugin.terms.term import Term
from mmkd_plugin.visualization import Gallery, Meta, Place, Viewer, places_of
from mmkd_plugin.visualization.figure import draw
from tests import stock_models
from tests.runs import needs_ops
from tests.visualization.scenes import META, scene_of

NAMES = ['predictions', 'attention', 'channels', 'explanations']


def viewers(student: dict, *, teacher: dict | None = None, baseline: bool = True) -> list[Viewer]:
    torch.manual_seed(0)
    model = stock_models.build(student)
    found = [Viewer('student', model, model.data_preprocessor)]
    if teacher is not None:
        found.insert(
            0, Viewer('teacher', stock_models.build(teacher), model.data_preprocessor, 'teacher')
        )
    if baseline:
        found.append(Viewer('baseline', stock_models.build(student), model.data_preprocessor))
    return found


def gallery(found: list[Viewer], tap: str | None = None, **changes: Any) -> Gallery:
    places = [] if tap is None else [Place({v.name: Taps.parse(tap) for v in found})]
    reference = found[0].name if found[0].side == 'teacher' else None
    settings = dict(panels=None, meta=META, places=places, reference=reference)
    return Gallery(found, **{**settings, **changes})


def by_name(pictures: list) -> dict[str, Any]:
    return {picture.name: picture for picture in pictures}


def test_all_panels_of_segmentors():
    found = viewers(stock_models.pspnet(), teacher=stock_models.pspnet(12))
    made = gallery(found, 'decode_head.conv_seg')
    assert list(made.panels) == NAMES
    scene = scene_of(found[1].model)
    pictures, scores = made.pictures(scene)
    pictures = by_name(pictures)
    assert list(pictures) == [
        'predictions',
        'attention-backbone',
        'channels-decode_head.conv_seg',
        'explanations-backbone[-1]',
    ]
    for picture in pictures.values():
        assert draw(picture.grid).std() > 20
        assert [name for name, _ in picture.grid.rows] == ['teacher', 'student', 'baseline']
    assert pictures['attention-backbone'].grid.columns == [f'backbone[{n}]' for n in range(4)]
    channels = pictures['channels-decode_head.conv_seg'].grid
    assert set(channels.columns) == {f'class {name}' for name in META.classes}
    seen = found[0].predict(scene)
    values, counts = np.unique(seen, return_counts=True)
    assert channels.columns[0] == f'class {META.classes[values[counts.argmax()]]}'
    assert list(scores['student']) == ['mIoU', 'pixels right', 'pixels as the teacher']
    assert list(scores['teacher']) == ['mIoU', 'pixels right']


@needs_ops
def test_all_panels_of_detectors():
    found = viewers(stock_models.retinanet(), teacher=stock_models.retinanet(12))
    nn.init.constant_(found[0].model.bbox_head.retina_cls.bias, 0.5)  # sure of every class
    made = gallery(found, 'neck', score_thr=0.0)
    pictures, scores = made.pictures(scene_of(found[1].model, 64, 96))
    pictures = by_name(pictures)
    assert list(pictures)[:5] == [
        'predictions',
        'attention-backbone',
        'attention-neck',
        'channels-neck[0]',
        'channels-neck[1]',
    ]
    assert 'channels-neck[2]' not in pictures  # six positions
    assert 'explanations-neck, map 0' in pictures
    assert scores['student']['objects found'].endswith(' of 1')
    assert 'other numbers' not in pictures['channels-neck[0]'].text
    assert pictures['channels-neck[0]'].grid.columns[0] == 'rank 1'  # 24 and 16 channels


def test_without_teacher_baseline_or_truth():
    found = viewers(stock_models.segformer(), baseline=False)
    pictures, scores = gallery(found).pictures(scene_of(found[0].model, 33, 65, truth=False))
    pictures = by_name(pictures)
    assert list(pictures) == ['predictions', 'attention-backbone', 'explanations-backbone[-1]']
    assert pictures['predictions'].grid.columns == ['prediction']
    assert scores == {'student': {}}


def binary(width: int, classes: int) -> dict:
    """A segmentor with one score: mmseg's form for one or two classes."""
    model = stock_models.fcn(width, classes)
    model['decode_head'] |= dict(
        out_channels=1,
        threshold=0.5,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    return model


@pytest.mark.parametrize('classes', [['road'], ['ground', 'road']])
def test_one_score(classes: list[str]) -> None:
    found = viewers(binary(8, len(classes)), teacher=binary(12, len(classes)))
    meta = Meta(classes, [[90, 90, 90]])
    made = gallery(found, 'decode_head.conv_seg', meta=meta)
    pictures = by_name(made.pictures(scene_of(found[1].model, 256, 128))[0])
    assert {'predictions', 'explanations-backbone[-1]'} < set(pictures)
    names = {name for name, _ in pictures['predictions'].grid.legend[0]}
    assert names <= {*classes, 'class 1'}
    made = gallery(found, 'backbone[1]', panels=['channels'], chosen=True)
    assert list(by_name(made.pictures(scene_of(found[1].model))[0])) == ['channels-backbone[1]']


@needs_ops
def test_a_teacher_that_is_sure_of_nothing_is_said_so():
    found = viewers(stock_models.retinanet(), teacher=stock_models.retinanet())
    nn.init.constant_(found[0].model.bbox_head.retina_cls.bias, -9)
    made = gallery(found, panels=['explanations'])
    (picture,), _ = made.pictures(scene_of(found[1].model))
    assert picture.grid is None
    assert picture.text == 'teacher sees no class with a probability over 0.3.'


def test_chosen_places_are_those_of_all_panels_of_maps():
    found = viewers(stock_models.pspnet(), teacher=stock_models.pspnet())
    places = [
        Place(
            {
                'teacher': Taps.parse('backbone.layer2'),
                'student': Taps.parse('backbone.layer3'),
                'baseline': Taps.parse('backbone.layer3'),
            }
        )
    ]
    made = gallery(found, places=places, chosen=True, panels=NAMES[1:])
    pictures, _ = made.pictures(scene_of(found[1].model))
    where = 'backbone.layer2 / backbone.layer3'
    assert list(by_name(pictures)) == [
        f'attention-{where}',
        f'channels-{where}',
        f'explanations-{where}',
    ]
    rows = dict(pictures[0].grid.rows)
    stages = found[0].model.eval().backbone(scene_of(found[1].model).inputs)
    squares = stages[1][0].detach().double().square().mean(0)
    assert np.allclose(rows['teacher'][0].heat, squares / squares.mean())


def test_explanations_are_of_the_classes_of_the_teacher_and_by_its_own_gradient():
    found = viewers(stock_models.pspnet(), teacher=stock_models.pspnet(12), baseline=False)
    scene = scene_of(found[1].model)
    grid = gallery(found, panels=['explanations']).pictures(scene)[0][0].grid
    model = found[0].model.eval()
    features = model.backbone(scene.inputs)[-1].detach().requires_grad_()
    with torch.enable_grad():
        logits = model.decode_head.forward([None, None, None, features])
        label = logits[0].argmax(0).flatten().bincount().argmax()
        logits[0, label][logits[0].argmax(0) == label].sum().backward()
    weights = features.grad.mean((2, 3), keepdim=True)
    cam = (weights * features).sum(1, keepdim=True).relu().detach()
    cam = torch.nn.functional.interpolate(cam, scene.inputs.shape[2:], mode='bilinear')[0, 0]
    assert grid.columns[0] == f'class {META.classes[int(label)]}'
    assert np.allclose(grid.rows[0][1][0].heat, cam / cam.max(), atol=1e-4)


def test_terms_say_where_to_look():
    loss = dict(type='mmkd_plugin.ChannelWiseLoss', tau=4)
    explained = dict(
        tap='neck',
        loss=dict(type='mmkd_plugin.ExplanationLoss'),
        explainer=dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls'),
    )
    distill = dict(
        cwd=dict(tap='neck', loss=loss),
        again=dict(tap='neck', loss=dict(type='mmkd_plugin.AttentionLoss')),
        hint=dict(student_tap='backbone[2]', teacher_tap='backbone[3]', loss=loss, teacher='large'),
        gradients=dict(tap='backbone', loss=dict(type='mmkd_plugin.GradientAttentionLoss')),
        why=explained,
    )
    names = ['teacher', 'large']
    terms = [
        Term.from_config(n, {'teacher': 'teacher', **term}, names) for n, term in distill.items()
    ]
    first, second, third = places_of(terms, ['baseline'])
    assert {n: str(taps) for n, taps in first.taps.items()} == dict.fromkeys(
        ['teacher', 'student', 'baseline'], 'neck'
    )
    assert first.tau == 4 and str(second) == 'backbone[3] / backbone[2]'
    assert list(second.taps) == ['large', 'student', 'baseline']
    assert third.explainer is terms[-1].explainer


@pytest.mark.parametrize(
    'panels, message',
    [
        (['attenton'], "no panel 'attenton'; did you mean 'attention'. Panels: predictions"),
        ([], 'panels: expected some of'),
        ('attention', "got 'attention'"),
        (['channels'], 'this config has none that does; leave it out of the panels, or choose'),
    ],
)
def test_panels_that_cannot_be_drawn(panels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gallery(viewers(stock_models.fcn(), baseline=False), panels=panels)


@needs_ops
def test_models_that_cannot_be_explained_are_drawn_without():
    found = viewers(stock_models.faster_rcnn(), baseline=False)
    assert gallery(found).panels == ['predictions', 'attention']
    with pytest.raises(ValueError, match='no class scores that can be explained'):
        gallery(found, panels=['explanations'])
