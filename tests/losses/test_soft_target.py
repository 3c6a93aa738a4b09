from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair

from mmkd_plugin.losses import PixelWiseLoss, SoftTargetLoss
from mmkd_plugin.losses.soft_target import soft_targets


class TestSoftTargetLoss(LossContract):
    name = 'SoftTargetLoss'
    variants = (dict(), dict(tau=1), dict(tau=0.5))
    pairs = alike((4, 5), (1, 3), (2, 1), (2, 3, 4, 4), (1, 3, 1, 1))

    @staticmethod
    def reference(student, teacher, tau=4.0):
        divergences = []
        for n in range(student.shape[0]):
            # a classifier's logits are those of a map with one position
            s, t = (x[n].reshape(x.shape[1], -1) / tau for x in (student, teacher))
            for i in range(s.shape[1]):
                q, p = (np.exp(x[:, i]) / np.exp(x[:, i]).sum() for x in (s, t))
                divergences.append(sum(p[c] * np.log(p[c] / q[c]) for c in range(p.size)))
        return tau**2 * sum(divergences) / len(divergences)


def test_known_value():
    teacher = torch.tensor([[0.0, 0.0]])  # (1/2, 1/2), whatever tau
    student = 4 * torch.tensor([[3.0, 1.0]]).log()  # (3/4, 1/4) at tau 4
    expected = 4**2 * (np.log(2 / 3) / 2 + np.log(2) / 2)
    assert soft_targets(student, teacher, tau=4).item() == pytest.approx(expected)
    batch = soft_targets(student.repeat(3, 1), teacher.repeat(3, 1), tau=4)  # a mean over images
    assert batch.item() == pytest.approx(expected)


def test_gradient_is_the_gap_of_the_distributions():
    student, teacher = random_pair(((4, 5), (4, 5)))
    soft_targets(student, teacher, tau=3.0).backward()
    gap = (student.detach() / 3).softmax(1) - (teacher / 3).softmax(1)
    torch.testing.assert_close(student.grad, gap * 3 / 4)


def test_the_level_of_the_logits_does_not_matter():
    student, teacher = random_pair(((4, 5), (4, 5)))
    levels = torch.randn(4, 1, dtype=torch.float64)
    torch.testing.assert_close(
        soft_targets(student + levels, teacher - levels), soft_targets(student, teacher)
    )


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_on_maps_it_is_the_pixel_wise_loss(tau):
    student, teacher = random_pair(((2, 3, 4, 5), (2, 3, 4, 5)))
    values = [kind(tau=tau)(student, teacher) for kind in (SoftTargetLoss, PixelWiseLoss)]
    assert torch.equal(*values)


def test_default_temperatures():
    assert SoftTargetLoss().tau == 4 and PixelWiseLoss().tau == 1


@pytest.mark.parametrize(('tau', 'error'), [(0, ValueError), (-2, ValueError), ('1', TypeError)])
def test_tau_is_checked(tau, error):
    with pytest.raises(error, match='tau must be'):
        SoftTargetLoss(tau=tau)
