from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair

from mmkd_plugin.losses import ChannelWiseLoss
from mmkd_plugin.losses.channel_wise import channel_wise


class TestChannelWiseLoss(LossContract):
    name = 'ChannelWiseLoss'
    variants = (dict(), dict(tau=1), dict(tau=0.5), dict(tau=1, standardize=True))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6))

    @staticmethod
    def reference(student, teacher, tau=4.0, standardize=False):
        if standardize:
            axes = dict(axis=(0, 2, 3), keepdims=True)
            student, teacher = (
                (x - x.mean(**axes)) / (x.std(**axes, ddof=1) + 1e-6) for x in (student, teacher)
            )
        total = 0.0
        for n in range(student.shape[0]):
            for c in range(student.shape[1]):
                s, t = student[n, c].ravel() / tau, teacher[n, c].ravel() / tau
                q, p = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
                total += sum(p[i] * (np.log(p[i]) - np.log(q[i])) for i in range(p.size))
        return tau**2 / (student.shape[0] * student.shape[1]) * total


def test_a_uniform_student_costs_the_teachers_missing_entropy():
    teacher = torch.zeros(1, 1, 2, 2)
    teacher[0, 0, 0, 0] = 1e4  # one-hot: entropy 0 of log(4)
    loss = channel_wise(torch.zeros(1, 1, 2, 2), teacher, tau=2)
    assert loss.item() == pytest.approx(2**2 * np.log(4))


def test_the_level_of_a_channel_does_not_matter():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    level = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        channel_wise(student + level, teacher), channel_wise(student, teacher)
    )


def test_standardized_channels_may_be_of_any_size():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    criterion = ChannelWiseLoss(tau=1, standardize=True)
    scaled, plain = criterion(student * 100 + 3, teacher), criterion(student, teacher)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=0)


def test_gradient_is_the_gap_of_the_distributions():
    student, teacher = random_pair(((2, 3, 4, 5), (2, 3, 4, 5)))
    tau = 4.0
    channel_wise(student, teacher, tau).backward()
    gap = [(x.detach() / tau).flatten(2).softmax(2).view_as(x) for x in (student, teacher)]
    torch.testing.assert_close(student.grad, (gap[0] - gap[1]) * tau / 6)


@pytest.mark.parametrize('tau', [0, -1.0, float('nan'), float('inf')])
def test_tau_must_be_positive(tau):
    with pytest.raises(ValueError, match='tau must be'):
        ChannelWiseLoss(tau=tau)


@pytest.mark.parametrize('tau', ['4', None, True])
def test_tau_must_be_a_number(tau):
    with pytest.raises(TypeError, match='tau must be a number'):
        ChannelWiseLoss(tau=tau)
