from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad
from test_cross_image import divergence, rows_of

from mmkd_plugin.losses import TokenRelationLoss


class TestTokenRelationLoss(LossContract):
    name = 'TokenRelationLoss'
    variants = (dict(queue=0), dict(queue=0, tau=1))  # with a queue, each call changes the next
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 4, 1, 6))

    @staticmethod
    def reference(student, teacher, tau=0.07, queue=0):
        pairs = [(rows_of(s), rows_of(t)) for s, t in zip(student, teacher)]
        return float(np.mean([divergence(s, s, t, t, tau) for s, t in pairs]))


def unit(x):
    return x / np.sqrt((x**2).sum())


def of_queue(student, teacher, queue, tau):
    """The part of the pooled vectors, with what is in the queue."""
    total = 0.0
    for s, t in zip(student, teacher):
        p, q = (np.exp([unit(x.mean((1, 2))) @ v / tau for v in queue]) for x in (s, t))
        p, q = p / p.sum(), q / q.sum()
        total += sum(q * np.log(q / p))
    return total / len(student)


def test_the_queue_holds_the_latest_images_of_the_teacher():
    loss, queue = TokenRelationLoss(tau=0.5, queue=5), []
    for seed in range(4):
        student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), seed=seed)
        s, t = student.detach().numpy(), teacher.numpy()
        queue = [*queue, *(unit(x.mean((1, 2))) for x in t)][-5:]
        expected = TestTokenRelationLoss.reference(s, t, tau=0.5) + of_queue(s, t, queue, 0.5)
        value = loss(student, teacher)
        assert value.item() == pytest.approx(expected, rel=1e-6)  # the queue is in float32
    assert sorted(loss.state_dict()) == ['queues.0.filled', 'queues.0.place', 'queues.0.vectors']


def test_gradient_with_a_queue():
    loss = TokenRelationLoss(tau=0.5, queue=8)
    loss(*random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), seed=1))
    student, teacher = random_pair(((2, 3, 2, 3), (2, 3, 2, 3)))
    assert torch.autograd.gradcheck(lambda s: copy.deepcopy(loss)(s, teacher), student)
    value, grad = value_and_grad(loss, teacher, teacher)
    assert value.item() == pytest.approx(0, abs=1e-12) and grad.abs().max() < 1e-6


def test_without_gradients_nothing_enters_the_queue():
    loss = TokenRelationLoss(queue=8)
    loss.setup([3], [3])
    pair = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    with torch.no_grad():
        value = loss(*pair)
    assert value.item() > 0 and not loss.queues[0].filled.any()
    torch.testing.assert_close(loss(*pair).detach(), value, rtol=1e-6, atol=0)
    assert loss.queues[0].filled.sum() == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('scale', [0, 1, 1e4])
def test_with_a_queue_it_is_finite(dtype, scale):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), dtype, scale=scale)
    value, grad = value_and_grad(TokenRelationLoss(queue=3), student, teacher)
    assert value.dtype == torch.float32 and value.isfinite() and grad.isfinite().all()


def test_a_queue_for_each_map_and_a_batch_larger_than_it():
    pairs = [random_pair(((4, c, 3, 3), (4, c, 3, 3))) for c in (2, 5)]
    loss = TokenRelationLoss(queue=3)
    value = loss(*zip(*pairs))
    torch.testing.assert_close(value, sum(TokenRelationLoss(queue=3)(*pair) for pair in pairs))
    assert [len(q.vectors.mT) for q in loss.queues] == [2, 5]


def test_channels_may_differ_without_a_queue():
    assert TokenRelationLoss().needs_same_channels
    loss = TokenRelationLoss(queue=0)
    assert not loss.needs_same_channels and 'single position' in loss.teaches_nothing(3, (1, 1))
    assert TokenRelationLoss().teaches_nothing(3, (1, 1)) is None
    assert loss(*random_pair(((2, 3, 4, 4), (2, 5, 4, 4)))).item() > 0


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(tau=0), ValueError, 'tau must be above 0'),
        (dict(queue=-1), ValueError, 'queue cannot be negative'),
        (dict(queue=1.5), TypeError, 'queue must be an int'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        TokenRelationLoss(**options)
