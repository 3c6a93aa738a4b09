from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LossContract, value_and_grad

from mmkd_plugin.losses import ExplanationLoss


class TestExplanationLoss(LossContract):
    name = 'ExplanationLoss'
    variants = (dict(),)
    pairs = (
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((1, 2, 5, 3), (1, 2, 5, 3)),
        ((3, 1, 1, 6), (3, 1, 1, 6)),
        ((3, 5), (3, 5)),
    )
    zeros_cost_nothing = False

    @staticmethod
    def reference(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            product = sum(a * b for a, b in zip(s.flat, t.flat))
            lengths = math.sqrt(sum(a * a for a in s.flat)) * math.sqrt(sum(b * b for b in t.flat))
            total += 1 - (product / lengths if lengths else 0)
        return total / len(student)


def test_known_values():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    teacher = torch.tensor([[0.0, 3.0], [2.0, 2.0], [1.0, 0.0]])
    assert ExplanationLoss()(student[:1], teacher[:1]).item() == 1
    assert ExplanationLoss()(student[1:2], teacher[1:2]).item() == pytest.approx(0, abs=1e-6)
    assert ExplanationLoss()(student[2:], teacher[2:]).item() == 2
    assert ExplanationLoss()(student, teacher).item() == pytest.approx(1)


@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
def test_a_pair_with_an_all_zero_map_costs_1_and_has_no_gradient(zero):
    student, teacher = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    alone = ExplanationLoss()(student[1:], teacher[1:])
    if zero != 'teacher':
        student[0] = 0
    if zero != 'student':
        teacher[0] = 0
    value, grad = value_and_grad(ExplanationLoss(), student, teacher)
    assert value.item() == pytest.approx((1 + alone.item()) / 2)
    assert not grad[0].any() and grad[1].any()


def test_scale_does_not_matter():
    generator = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(generator.normal(size=(2, 1, 6, 6))) for _ in range(2))
    expected = ExplanationLoss()(student, teacher).item()
    for exponent in (-6, -3, 3, 12):
        value = ExplanationLoss()(student.float() * 10.0**exponent, teacher.float())
        assert value.item() == pytest.approx(expected, rel=1e-5)
