from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import HintLoss


class TestHintLoss(LossContract):
    name = 'HintLoss'
    variants = (dict(),)
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6), (3, 5))

    @staticmethod
    def reference(student, teacher):
        total = 0.0
        for index in np.ndindex(student.shape):
            total += (student[index] - teacher[index]) ** 2
        return total / student.size


def test_known_value():
    student = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2).requires_grad_()
    teacher = torch.tensor([1.0, 0.0, 6.0, 3.0]).view(2, 1, 1, 2)
    value, grad = value_and_grad(HintLoss(), student, teacher)
    assert value.item() == (0 + 4 + 9 + 1) / 4
    assert grad.flatten().tolist() == [0, 1, -1.5, 0.5]  # 2/4 of the gap


@pytest.mark.parametrize('copies', [2, 5])
def test_the_size_of_batch_map_and_channels_does_not_matter(copies):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    expected = HintLoss()(student, teacher)
    for dim in range(4):
        times = [copies if d == dim else 1 for d in range(4)]
        torch.testing.assert_close(
            HintLoss()(student.repeat(times), teacher.repeat(times)), expected
        )


def test_close_maps_keep_their_digits():
    teacher = torch.full((1, 4, 64, 64), 1e4)
    student = teacher + 2**-9  # a step of float32 at 1e4 is 2^-10
    assert HintLoss()(student, teacher).item() == pytest.approx(2**-18, rel=1e-6)
