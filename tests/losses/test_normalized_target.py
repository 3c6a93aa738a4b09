from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled import LabelledContract, labelled_rows, random_labels, softmax
from loss_contract import random_pair, value_and_grad

from mmkd_plugin.losses import NormalizedTargetLoss
from mmkd_plugin.losses.normalized_target import normalized_target


def by_hand(student, teacher, labels, tau=1.0, gamma=1.5):
    total, rows = 0.0, [labelled_rows(x, labels) for x in (student, teacher)]
    for (s, y), (t, _) in zip(*rows):
        total -= softmax(t)[y] * np.log(softmax(s)[y])
        q, u = (softmax(np.delete(x / tau, y)) for x in (s, t))
        total -= gamma * tau**2 * sum(u * np.log(q))
    return total / max(len(rows[0]), 1)


class TestNormalizedTargetLoss(LabelledContract):
    name = 'NormalizedTargetLoss'
    variants = (dict(), dict(tau=4, gamma=1), dict(gamma=0))
    identical_is_zero = False  # cross-entropies
    zeros_cost_nothing = False

    @staticmethod
    def reference(student, teacher, **options):
        return by_hand(student, teacher, random_labels(len(student)).numpy(), **options)


def test_logits_of_images():
    student, teacher = random_pair(((4, 5), (4, 5)))
    labels = torch.tensor([0, 4, 255, 2])
    value = NormalizedTargetLoss(tau=2)(student, teacher, labels)
    expected = by_hand(student.detach().numpy(), teacher.numpy(), labels.numpy(), tau=2)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    assert not student.grad[2].any() and student.grad[0].any()


def test_the_gradient_vanishes_for_the_others_of_the_teacher_itself():
    _, teacher = random_pair(((4, 5), (4, 5)))
    labels = torch.tensor([0, 1, 2, 3])
    whole, none = (
        value_and_grad(lambda s, t, g=g: normalized_target(s, t, labels, gamma=g), teacher, teacher)
        for g in (1.5, 0.0)
    )
    assert whole[0] > none[0] and none[1].any()
    torch.testing.assert_close(whole[1], none[1])


def test_a_single_class_and_rows_without_a_class_cost_nothing():
    assert 'a single class' in NormalizedTargetLoss().teaches_nothing(1)
    for channels, label in ((1, 0), (4, 255), (4, -1), (4, 4)):
        student, teacher = random_pair(((2, channels), (2, channels)))
        labels = torch.tensor([label, label])
        value, grad = value_and_grad(
            lambda s, t: NormalizedTargetLoss()(s, t, labels),  # noqa: B023
            student,
            teacher,
        )
        assert value.item() == 0 and not grad.any()


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(tau=0), ValueError, 'tau must be above 0'),
        (dict(gamma=-1), ValueError, 'gamma cannot be negative'),
        (dict(ignore_index=None), TypeError, 'ignore_index must be an int'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        NormalizedTargetLoss(**options)
