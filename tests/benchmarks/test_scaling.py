"""Sweeps, and the powers fitted to them."""

from __future__ import annotations

import pytest

from benchmarks import cases, scaling


def case_of(loss: str, quick: bool = False) -> cases.Case:
    return scaling.pick([loss], quick)[0]


def test_the_power_is_fitted():
    points = [dict(value=x, seconds=0.3 * x**1.5) for x in (16, 64, 256)]
    assert scaling.exponent(points) == pytest.approx(1.5)


def test_each_loss_is_swept_over_what_it_has():
    assert {case.loss for case in scaling.pick([])} == set(cases.registered_losses())
    assert scaling.axes_of(case_of('HintLoss')) == ['positions', 'batch', 'channels']
    assert scaling.axes_of(case_of('RKDAngleLoss')) == ['batch', 'channels']
    assert scaling.axes_of(case_of('IntraClassVariationLoss'))[-1] == 'classes'
    assert scaling.axes_of(case_of('DecoupledLoss')) == ['positions', 'batch', 'channels']
    assert scaling.axes_of(case_of('FocalGlobalLoss'))[2:] == ['channels', 'boxes']
    assert scaling.axes_of(case_of('BoxDistributionLoss'))[2:] == ['classes', 'boxes']
    assert scaling.axes_of(case_of('SharedQueriesLoss')) == ['positions', 'batch', 'classes']


@pytest.mark.parametrize(
    ('axis', 'shapes', 'value'),
    [
        ('positions', [(4, 128, 128, 128), (4, 256, 128, 128)], 128 * 128),
        ('batch', [(16, 128, 64, 64), (16, 256, 64, 64)], 16),
        ('channels', [(4, 512, 64, 64), (4, 1024, 64, 64)], 512),
    ],
)
def test_one_thing_varies_at_a_time(axis, shapes, value):
    assert scaling.varied(case_of('FSPLoss'), axis, 4)[0].shapes == shapes
    assert scaling.varied(case_of('FSPLoss'), axis, 4)[1] == value


def test_classes_are_those_of_the_labels():
    case, value = scaling.varied(case_of('IntraClassVariationLoss', quick=True), 'classes', 4)
    labels = case.inputs().others[0]
    assert value == case.classes == 76 and 19 < labels[labels != 255].max() < 76


@pytest.mark.parametrize(
    ('loss', 'axis', 'shapes', 'value'),
    [
        ('BoxDistributionLoss', 'classes', [(2, 32, 8, 8), (2, 16, 8, 8)], 32),
        ('SharedQueriesLoss', 'positions', [(1, 2, 32, 8), (1, 2, 32, 4)], 32),
        ('SharedQueriesLoss', 'classes', [(1, 2, 8, 32), (1, 2, 8, 4)], 32),
        ('FocalGlobalLoss', 'boxes', [(4, 4, 8, 8)], 80),
    ],
)
def test_results_of_heads_are_swept(loss, axis, shapes, value):
    case, found = scaling.varied(case_of(loss, quick=True), axis, 4)
    assert (case.shapes, found) == (shapes, value)
    assert case.inputs().call(case.ours())[0].shape == shapes[0]


def test_classes_of_logits_are_their_channels():
    case, value = scaling.varied(case_of('DecoupledLoss', quick=True), 'channels', 4)
    assert value == case.classes == case.shapes[0][1] == 16
    case, value = scaling.varied(case_of('MemoryContrastLoss', quick=True), 'classes', 2)
    assert value == case.options['classes'] == 38
