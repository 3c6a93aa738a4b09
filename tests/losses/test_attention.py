from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LossContract, random_pair, value_and_grad

from mmkd_plugin.losses import AttentionLoss
from mmkd_plugin.losses.attention import attention, attention_map


class TestAttentionLoss(LossContract):
    name = 'AttentionLoss'
    variants = (dict(), dict(norm='l2'), dict(p=3), dict(p=0.5), dict(p=1, norm='l2'))
    pairs = (
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((1, 2, 5, 3), (1, 1, 5, 3)),
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 1, 1, 6), (1, 4, 1, 6)),
    )
    same_channels = False

    @staticmethod
    def reference(student, teacher, p=2, norm='mse'):
        def unit_energy(sample):
            energy = []
            for y in range(sample.shape[1]):
                for x in range(sample.shape[2]):
                    energy.append(np.mean([abs(value) ** p for value in sample[:, y, x]]))
            return np.array(energy) / np.sqrt(sum(e**2 for e in energy))

        gaps = [unit_energy(s) - unit_energy(t) for s, t in zip(student, teacher)]
        if norm == 'l2':
            return float(np.mean([np.sqrt((gap**2).sum()) for gap in gaps]))
        return float(np.mean(np.square(gaps)))


def test_known_value():
    student = torch.tensor([3.0, 4.0]).sqrt().view(1, 1, 1, 2)  # energies 3, 4: (0.6, 0.8)
    teacher = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    loss = attention(student, teacher)
    assert loss.item() == pytest.approx((0.4**2 + 0.8**2) / 2)


def test_equation_2_by_hand():
    student = torch.tensor([3.0, 4.0]).sqrt().view(1, 1, 1, 2)  # (0.6, 0.8)
    teacher = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    loss = attention(student.repeat(3, 1, 1, 1), teacher.repeat(3, 1, 1, 1), norm='l2')
    assert loss.item() == pytest.approx(math.hypot(0.4, 0.8))


def test_norm_is_checked():
    with pytest.raises(ValueError, match="norm must be one of 'mse', 'l2', got 'l1'"):
        AttentionLoss(norm='l1')


@pytest.mark.parametrize('scale', [1e-9, 1e-3, 1e3, 1e9, 1e30])
@pytest.mark.parametrize('p', [1, 2, 8])
def test_the_scale_of_a_sample_does_not_matter(p, scale):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 5, 4, 4)), torch.float32)
    expected = attention(student, teacher, p)
    torch.testing.assert_close(attention(student * scale, teacher, p), expected)
    torch.testing.assert_close(attention(student, teacher * scale, p), expected)


def test_high_powers_of_large_float16_values_do_not_overflow():
    student, teacher = random_pair(((1, 3, 4, 4), (1, 3, 4, 4)), torch.float16, scale=1e4)
    value, grad = value_and_grad(AttentionLoss(p=20), student, teacher)
    expected = AttentionLoss(p=20)(student.double(), teacher.double())
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert grad.isfinite().all()


@pytest.mark.parametrize('p', [0.5, 1, 1.5, 2])
def test_zeros_inside_a_map_are_finite(p):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 5, 4, 4)))
    student = student.detach().relu()
    student[:, :, 0] = 0
    value, grad = value_and_grad(AttentionLoss(p=p), student, teacher.relu())
    assert value.isfinite() and grad.isfinite().all() and not grad[:, :, 0].any()


def test_map_has_unit_length_or_is_zero():
    x = torch.randn(3, 2, 4, 5)
    x[1] = 0
    lengths = attention_map(x).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ('p', 'error'),
    [(0, ValueError), (-1, ValueError), (math.inf, ValueError), ('2', TypeError)],
)
def test_p_is_checked(p, error):
    with pytest.raises(error, match='p must be'):
        AttentionLoss(p=p)
