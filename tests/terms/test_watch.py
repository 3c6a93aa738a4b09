"""Terms that teach nothing: said before training or in the first iterations, without alarms."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.logging import MessageHub

from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.terms.gradient_sizes import Sizes
from mmkd_plugin.terms.watch import PATIENCE, Watch
from tests import stock_models
from tests.stock_models import batch, build, distiller


def watch(kind: str, **arguments) -> Watch:
    loss = build(dict(type=f'mmkd_plugin.{kind}', **arguments))
    return Watch('distill.t', kind, LossTraits.of(loss))


NOTHING = [
    ('PixelWiseLoss', dict(), (2, 1, 8, 8), 'sigmoid=True'),
    ('SoftTargetLoss', dict(), (2, 1, 8, 8), 'sigmoid=True'),
    ('RKDDistanceLoss', dict(), (2, 8, 4, 4), 'larger batch'),
    ('RKDAngleLoss', dict(), (1, 8, 4, 4), 'larger batch'),
]
SMALL = [
    ('ChannelWiseLoss', dict(), (2, 8, 1, 1)),
    ('AttentionLoss', dict(), (2, 8, 1, 1)),
    ('NeuronSelectivityLoss', dict(), (2, 8, 1, 1)),
    ('LocalSimilarityLoss', dict(), (2, 8, 2, 5)),
    ('PairWiseLoss', dict(pool=0.5), (2, 8, 1, 1)),
    ('PairWiseLoss', dict(pool=8), (2, 8, 8, 8)),
    ('RKDDistanceLoss', dict(embed='positions'), (3, 8, 1, 2)),
]
TEACHING = [
    ('PixelWiseLoss', dict(sigmoid=True), (2, 1, 8, 8)),
    ('PixelWiseLoss', dict(), (1, 2, 1, 1)),
    ('RKDDistanceLoss', dict(embed='positions'), (1, 8, 2, 2)),
    ('RKDAngleLoss', dict(), (3, 8, 1, 1)),
    ('ChannelWiseLoss', dict(), (1, 1, 1, 2)),
    ('PairWiseLoss', dict(pool=0.5), (1, 8, 2, 2)),
    ('LocalSimilarityLoss', dict(), (1, 1, 3, 3)),
    ('HintLoss', dict(), (1, 1, 1, 1)),
]


@pytest.mark.parametrize(('kind', 'arguments', 'shape', 'advice'), NOTHING)
def test_maps_that_can_teach_nothing_are_refused(kind, arguments, shape, advice):
    with pytest.raises(ValueError, match=rf'^distill\.t: {kind} teaches nothing: .*{advice}'):
        watch(kind, **arguments).maps([torch.randn(shape)])


@pytest.mark.parametrize(('kind', 'arguments', 'shape'), SMALL)
def test_maps_that_are_too_small_are_said_once(kind, arguments, shape, log):
    one = watch(kind, **arguments)
    one.maps([torch.randn(shape)])
    one.maps([torch.randn(shape)])
    (text,) = log.warnings
    assert text.startswith(f'distill.t: {kind} teaches nothing: ')


@pytest.mark.parametrize(('kind', 'arguments', 'shape'), [case[:3] for case in NOTHING] + SMALL)
def test_what_is_said_is_true(kind, arguments, shape):
    loss = build(dict(type=f'mmkd_plugin.{kind}', **arguments))
    student, teacher = torch.randn(shape), torch.randn(shape)
    assert loss(student, teacher).abs().item() < 1e-6


@pytest.mark.parametrize(('kind', 'arguments', 'shape'), TEACHING)
def test_maps_that_teach(kind, arguments, shape, log):
    one = watch(kind, **arguments)
    one.channels([torch.randn(shape)])
    one.maps([torch.randn(shape)])
    assert log.warnings == []


def test_one_map_of_several_is_enough(log):
    watch('ChannelWiseLoss').maps([torch.randn(2, 8, 1, 1), torch.randn(2, 8, 4, 4)])
    assert log.warnings == []


@pytest.mark.parametrize(
    ('values', 'warned'),
    [
        ([0.0] * PATIENCE, True),
        ([0.0] * (PATIENCE - 1), False),
        ([0.0] * (PATIENCE - 1) + [1e-9] + [0.0] * PATIENCE, False),
    ],
)
def test_a_loss_that_stays_0(values, warned, log):
    one = watch('HintLoss')
    for value in values:
        one.value(torch.tensor(value))
    assert len(log.warnings) == warned


def sizes(term: float, task: float | None, connector: float = 0.0) -> Sizes:
    of_task = None if task is None else torch.tensor([task])
    return Sizes(torch.tensor([term]), of_task, [True], torch.tensor(connector))


def looked(term: float, task: float | None, connector: float = 0.0) -> Watch:
    one = watch('HintLoss')
    for _ in range(50):
        if one.due():
            one.gradient(sizes(term, task, connector))
        one.value(torch.tensor(1.0))
    return one


USELESS = [
    (0.0, 1.0, 0.0, 'teaches nothing so far: HintLoss gave its tap of the student no gradient'),
    (0.0, 1.0, 2.0, 'and only its connector learns'),
    (0.0, None, 0.0, 'teaches nothing so far'),
    (1e-5, 1.0, 0.0, 'teaches next to nothing: .* 1.0e-05 of the task .* by about 3e[+]04, or'),
    (300.0, 1.0, 0.0, 'drowns the task loss: .* 300 times .* Divide its loss_weight by about 1e'),
]


@pytest.mark.parametrize(('term', 'task', 'connector', 'message'), USELESS)
def test_a_gradient_of_no_use_is_said_within_fifty_iterations(term, task, connector, message, log):
    looked(term, task, connector)
    (text,) = log.warnings
    assert text.startswith('distill.t ') and re.search(message, text)


@pytest.mark.parametrize(('term', 'task'), [(0.3, 1.0), (99.0, 1.0), (1e-3, 1.0), (1.0, None)])
def test_a_gradient_of_use_is_not_said(term, task, log):
    looked(term, task)
    assert log.warnings == []


def test_a_run_says_that_a_weight_is_far_too_large(log):
    term = dict(tap='decode_head.conv_seg', loss=dict(type='mmkd_plugin.HintLoss', loss_weight=1e6))
    model = distiller(stock_models.fcn(), stock_models.fcn(16), dict(hint=term)).train()
    inputs, samples = batch(model)
    for _ in range(50):
        model(inputs, samples, mode='loss')
    (text,) = [text for text in log.warnings if 'distill.hint' in text]
    assert text.startswith('distill.hint drowns the task loss: the gradient of HintLoss at ')
    assert "'decode_head.conv_seg' of the student" in text
    share = MessageHub.get_current_instance().get_scalar('train/distill.hint.share').current()
    assert share > 100


def test_later_looks_are_few():
    one, due = watch('HintLoss'), []
    for iteration in range(201):
        if one.due():
            due.append(iteration)
            one.gradient(sizes(1.0, 1.0))
        one.value(torch.tensor(1.0))
    assert due == [0, 10, 20, 30, 40, 50, 100, 150, 200] and len(one.looks) == 5
