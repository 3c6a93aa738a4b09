from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.connectors import Paraphraser, Translator
from mmkd_plugin.losses import FactorTransferLoss


class TestFactorTransferLoss(LossContract):
    name = 'FactorTransferLoss'
    variants = (dict(), dict(p=2))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6), (3, 5))

    @staticmethod
    def reference(student, teacher, p=1):
        total = 0.0
        for s, t in zip(student, teacher):
            length_s = math.sqrt(sum(x**2 for x in s.flat))
            length_t = math.sqrt(sum(x**2 for x in t.flat))
            for index in np.ndindex(s.shape):
                total += abs(s[index] / length_s - t[index] / length_t) ** p
        return total / student.size


def test_known_value():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 1, 2)  # (0.6, 0.8), (0, 1)
    teacher = torch.tensor([[8.0, 6.0], [0.0, 5.0]]).view(2, 1, 1, 2)  # (0.8, 0.6), (0, 1)
    assert FactorTransferLoss()(student, teacher).item() == pytest.approx(0.4 / 4)


def test_squares_by_hand():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 1, 2)  # (0.6, 0.8), (0, 1)
    teacher = torch.tensor([[8.0, 6.0], [0.0, 5.0]]).view(2, 1, 1, 2)  # (0.8, 0.6), (0, 1)
    assert FactorTransferLoss(p=2)(student, teacher).item() == pytest.approx(0.08 / 4)


@pytest.mark.parametrize('p', [0, 3, 1.0, True, '1'])
def test_p_is_checked(p):
    with pytest.raises(ValueError, match='p must be 1 or 2, got'):
        FactorTransferLoss(p=p)


def test_gradient_by_hand():
    student, teacher = random_pair(((2, 3, 4, 5), (2, 3, 4, 5)))
    _, grad = value_and_grad(FactorTransferLoss(), student, teacher)
    for s, t, slope in zip(student.detach().numpy(), teacher.numpy(), grad.numpy()):
        s, t, length = s.ravel(), t.ravel(), np.linalg.norm(s)
        signs = np.sign(s / length - t / np.linalg.norm(t)) / grad.numel()
        expected = (signs - s / length * (signs @ s) / length) / length
        np.testing.assert_allclose(slope.ravel(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize('scale', [1e-9, 1e-3, 1e3, 1e9])
def test_the_length_of_a_factor_does_not_matter(scale):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), torch.float32)
    value, grad = value_and_grad(FactorTransferLoss(), student, teacher)
    longer, slope = value_and_grad(FactorTransferLoss(), student * scale, teacher)
    torch.testing.assert_close(longer, value)
    torch.testing.assert_close(slope * scale, grad)
    assert (grad * student).sum().abs() < 1e-7
    torch.testing.assert_close(FactorTransferLoss()(student, teacher * scale), value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_a_zero_factor_stays_zero_and_gets_no_gradient(dtype):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), dtype)
    student = student.detach()
    student[0] = 0
    value, grad = value_and_grad(FactorTransferLoss(), student, teacher)
    assert not grad[0].any() and grad[1].any()
    first = teacher[0].double().abs().sum() / teacher[0].double().norm() / 48
    second = FactorTransferLoss()(student[1:].double(), teacher[1:].double())
    assert value.item() == pytest.approx((first + second).item() / 2, rel=1e-4)


def test_factors_of_maps_with_other_channel_counts():
    torch.manual_seed(0)
    paraphraser, translator = Paraphraser(10), Translator(4, 5)
    student, teacher = random_pair(((2, 4, 6, 6), (2, 10, 6, 6)), torch.float32)
    loss = FactorTransferLoss()(translator(student), paraphraser(teacher))
    loss.backward()
    assert student.grad.any() and all(p.grad.any() for p in translator.parameters())
    assert all(p.grad is None for p in paraphraser.parameters())
