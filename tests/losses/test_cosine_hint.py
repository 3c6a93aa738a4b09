from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import CosineHintLoss


def cosine(a, b):
    return a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))


class TestCosineHintLoss(LossContract):
    name = 'CosineHintLoss'
    variants = (dict(), dict(scope='token'), dict(cos=1, l1=0), dict(cos=0, l1=2))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (3, 5), (1, 1, 1, 6))
    zeros_cost_nothing = False  # they have no direction

    @staticmethod
    def reference(student, teacher, cos=0.9, l1=0.1, scope='sample'):
        if scope == 'sample':
            pairs = [(s.ravel(), t.ravel()) for s, t in zip(student, teacher)]
        else:
            s, t = (x.reshape(*x.shape[:2], -1) for x in (student, teacher))
            pairs = [(s[n, :, i], t[n, :, i]) for n in range(len(s)) for i in range(s.shape[2])]
        apart = np.mean([1 - cosine(*pair) for pair in pairs])
        gap = abs(student - teacher).ravel()
        return cos * apart + l1 * np.mean([g**2 / 2 if g < 1 else g - 0.5 for g in gap])


def test_a_vector_without_direction_costs_cos_and_gets_the_gradient_of_the_values_alone():
    student, teacher = (x.detach() for x in random_pair(((2, 3, 2, 2), (2, 3, 2, 2))))
    student[0] = 0
    value, grad = value_and_grad(CosineHintLoss(cos=1, l1=0, scope='token'), student, teacher)
    _, second = value_and_grad(CosineHintLoss(cos=1, l1=0, scope='token'), student[1:], teacher[1:])
    assert not grad[0].any()
    torch.testing.assert_close(grad[1:], second / 2)
    assert value.isfinite()


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(cos=-1), ValueError, 'cos cannot be negative'),
        (dict(l1='1'), TypeError, 'l1 must be a number'),
        (dict(cos=0, l1=0), ValueError, 'cos and l1 are both 0'),
        (dict(scope='image'), ValueError, "scope must be one of 'sample', 'token', got 'image'"),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        CosineHintLoss(**options)
