from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import ActivationBoundaryLoss


class TestActivationBoundaryLoss(LossContract):
    name = 'ActivationBoundaryLoss'
    variants = (dict(), dict(margin=0.3), dict(margin=2))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6), (3, 5))
    identical_is_zero = False  # within the margin, the teacher itself pays
    zeros_cost_nothing = False
    float16_at_1e4 = False  # 2 * 4e4 / N

    @staticmethod
    def reference(student, teacher, margin=1.0):
        total = 0.0
        for index in np.ndindex(student.shape):
            s = student[index]
            total += max(0, margin - s if teacher[index] > 0 else s + margin) ** 2
        return total / len(student)

    def test_gradient_in_plain_loops(self):
        for options in self.variants:
            margin = options.get('margin', 1.0)
            for shapes in self.pairs:
                student, teacher = random_pair(shapes, scale=2.0)
                _, grad = value_and_grad(self.build(**options), student, teacher)
                for index in np.ndindex(student.shape):
                    s, expected = student[index].item(), 0.0
                    if teacher[index] > 0 and s < margin:
                        expected = 2 * (s - margin) / len(student)
                    elif teacher[index] <= 0 and s > -margin:
                        expected = 2 * (s + margin) / len(student)
                    assert grad[index].item() == pytest.approx(expected, rel=1e-12)

    def test_identical_maps_beyond_the_margin_cost_nothing(self):
        student, _ = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), torch.float32)
        student = student.detach() + 2 * student.detach().sign()
        value, grad = value_and_grad(ActivationBoundaryLoss(margin=2), student, student.clone())
        assert value.item() == 0 and not grad.any()

    def test_all_zero_maps_pay_the_margin_everywhere(self):
        zeros = torch.zeros(2, 3, 4, 5)
        value, grad = value_and_grad(ActivationBoundaryLoss(margin=0.5), zeros, zeros)
        assert value.item() == 3 * 4 * 5 * 0.25
        assert torch.equal(grad, torch.full_like(grad, 2 * 0.5 / 2))  # T = 0 does not fire


def test_known_value_and_gradient_at_the_kinks():
    inf = math.inf
    # T, S, what it costs, the slope of that
    cases = [
        (3.0, 2.0, 0, 0),  # fires, beyond the margin
        (3.0, 1.0, 0, 0),  # on it
        (3.0, 0.5, 0.25, -1),
        (3.0, 0.0, 1, -2),
        (3.0, -2.0, 9, -6),
        (1e-30, 0.0, 1, -2),
        (0.0, 0.0, 1, 2),  # 0 does not fire
        (-0.0, 1.0, 4, 4),
        (-1.0, -0.5, 0.25, 1),
        (-1.0, -1.0, 0, 0),
        (-1.0, -9.0, 0, 0),
        (inf, 0.5, 0.25, -1),
        (-inf, 0.5, 2.25, 3),
    ]
    teacher, student, cost, slope = (torch.tensor(column) for column in zip(*cases))
    student = student.view(1, -1, 1, 1).repeat(2, 1, 1, 1)
    teacher = teacher.view(1, -1, 1, 1).repeat(2, 1, 1, 1)
    value, grad = value_and_grad(ActivationBoundaryLoss(), student, teacher)
    assert value.item() == cost.sum().item()  # twice the sum, divided by N = 2
    assert torch.equal(grad[0].flatten(), slope / 2) and torch.equal(grad[1], grad[0])


def test_only_the_sign_of_the_teacher_counts():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    expected = ActivationBoundaryLoss()(student, teacher)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(ActivationBoundaryLoss()(student, teacher * scale), expected)


@pytest.mark.parametrize(
    ('margin', 'error'),
    [(0, ValueError), (-1, ValueError), (math.inf, ValueError), ('1', TypeError)],
)
def test_margin_is_checked(margin, error):
    with pytest.raises(error, match='margin must be'):
        ActivationBoundaryLoss(margin=margin)
