from __future__ import annotations

import math

import pytest
import torch
from loss_contract import LossContract, alike

from mmkd_plugin.losses import ReviewLoss


class TestReviewLoss(LossContract):
    name = 'ReviewLoss'
    variants = (dict(),)
    pairs = alike(
        (2, 3, 6, 7), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6), (2, 2, 4, 9), (3, 1, 2, 2)
    )

    @staticmethod
    def reference(student, teacher):
        """Bins as in adaptive pooling, from floor(i H / k) to ceil((i + 1) H / k)."""
        gap = student - teacher
        height, width = gap.shape[2:]
        total, weights, weight = (gap**2).mean(), 1, 1
        for k in (4, 2, 1):
            if k >= height:
                continue
            cells = []
            for row in range(k):
                for column in range(k):
                    rows = slice(row * height // k, math.ceil((row + 1) * height / k))
                    columns = slice(column * width // k, math.ceil((column + 1) * width / k))
                    cells.append((gap[:, :, rows, columns].mean((2, 3)) ** 2).mean())
            weight /= 2
            weights += weight
            total += weight * sum(cells) / k**2
        return total / weights


@pytest.mark.parametrize(('height', 'count'), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (40, 3)])
def test_a_constant_difference_costs_its_square_at_each_scale(height, count):
    x = torch.zeros(2, 3, height, 4)
    assert ReviewLoss()(x + 3, x).item() == pytest.approx(9)
    # a difference without a mean costs less with each pooling that takes part
    waves = x.clone()
    waves[..., ::2], waves[..., 1::2] = 1, -1
    fine = 1 + (0.5 if height > 4 else 0)  # 4 columns are not pooled to 4
    weights = sum(0.5**i for i in range(count + 1))
    assert ReviewLoss()(waves, x).item() == pytest.approx(fine / weights)
