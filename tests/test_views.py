"""Views: what a term wants to see of a model."""

from __future__ import annotations

import copy

import pytest
import torch

from mmkd_plugin.explanations import GradCAM
from mmkd_plugin.taps import Tap, Taps
from mmkd_plugin.views import View, of_kind, taps_of, try_explaining
from tests import stock_models

FEATURES, SCORES = (
    Taps.parse(['backbone.layer3', 'backbone.layer4']),
    Taps.parse('decode_head.conv_seg'),
)


def explaining(side: str = 'teacher') -> View:
    explainer = GradCAM('decode_head.conv_seg', teacher_scores='decode_head.cls')
    return View(FEATURES, 'explanations', explainer, side, term='distill.explain')


def test_maps_and_gradients_read_their_taps():
    assert View(FEATURES).reads() == FEATURES.taps and View(FEATURES).on_path() == ()
    gradients = View(FEATURES, 'gradients')
    assert gradients.reads() == gradients.on_path() == FEATURES.taps


@pytest.mark.parametrize(
    ('side', 'scores'), [('student', 'decode_head.conv_seg'), ('teacher', 'decode_head.cls')]
)
def test_explanations_read_the_scores_too(side, scores):
    view = explaining(side)
    assert view.reads() == (*FEATURES, Tap(scores)) and view.on_path() == FEATURES.taps


def test_equal_views_are_one_but_explanations_stay_apart():
    assert View(FEATURES, term='distill.a') == View(FEATURES, term='distill.b')
    assert View(FEATURES) != View(FEATURES, 'gradients')
    first, second = explaining(), explaining()
    assert first != second and first == copy.copy(first)
    assert len(of_kind([first, second, first])) == 2


def test_taps_of_several_views_come_once():
    views = [View(FEATURES), View(SCORES), View(FEATURES, 'gradients'), View(SCORES)]
    assert taps_of(views) == [*FEATURES, *SCORES]
    assert taps_of(views, 'gradients') == list(FEATURES)
    assert of_kind(views, 'maps') == [View(FEATURES), View(SCORES)]


def test_a_trial_gives_a_corner_of_the_explanations_and_draws_nothing():
    model = stock_models.build(stock_models.fcn())
    explainer = GradCAM('decode_head.conv_seg')
    view = View(Taps.parse('backbone.layer4'), 'explanations', explainer, term='distill.explain')
    before = torch.random.get_rng_state()
    kind, (corner,) = try_explaining(view, model, torch.device('cpu'), 'the teacher')
    assert torch.equal(torch.random.get_rng_state(), before)
    assert kind.classes == 5 and not kind.sigmoid and corner.shape == (1, 1, 8, 8)


def test_scores_that_do_not_depend_on_the_maps():
    model = stock_models.build(stock_models.fcn())
    explainer = GradCAM('decode_head.conv_seg')
    view = View(SCORES, 'explanations', explainer, term='distill.explain')
    behind = View(Taps.parse('auxiliary'), 'explanations', explainer, term='distill.explain')
    try_explaining(view, model, torch.device('cpu'), 'the teacher')  # by themselves
    with pytest.raises(ValueError, match=r"distill\.explain: the teacher's scores at 'decode_head"):
        try_explaining(behind, model, torch.device('cpu'), 'the teacher')
