from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from allocations import Allocations
from loss_contract import LossContract, random_pair

from mmkd_plugin.losses import CrossImageLoss
from mmkd_plugin.losses.numerics import relations


def rows_of(image):
    """The unit vectors of the positions of an image."""
    vectors = image.reshape(len(image), -1).T
    return [v / np.sqrt((v**2).sum()) for v in vectors]


def divergence(s_i, s_j, t_i, t_j, tau):
    total = 0.0
    for a, b in zip(s_i, t_i):
        p, q = (np.exp([x @ y / tau for y in js]) for x, js in ((a, s_j), (b, t_j)))
        p, q = p / p.sum(), q / q.sum()
        total += sum(q * np.log(q / p))
    return total / len(s_i)


class TestCrossImageLoss(LossContract):
    name = 'CrossImageLoss'
    variants = (dict(), dict(tau=1), dict(pool=2))
    pairs = (
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((3, 2, 2, 3), (3, 2, 2, 3)),
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 2, 1, 6), (1, 4, 1, 6)),
    )
    same_channels = False

    @staticmethod
    def reference(student, teacher, tau=0.1, pool=None):
        if pool:
            student, teacher = (
                F.avg_pool2d(torch.from_numpy(x), pool, ceil_mode=True).numpy()
                for x in (student, teacher)
            )
        s, t = ([rows_of(image) for image in x] for x in (student, teacher))
        every = range(len(s))
        return np.mean([divergence(s[i], s[j], t[i], t[j], tau) for i in every for j in every])


def test_rows_in_many_parts_give_the_same(monkeypatch):
    pair = random_pair(((3, 4, 5, 7), (3, 6, 5, 7)))
    loss = CrossImageLoss()
    value = loss(*pair)
    (slope,) = torch.autograd.grad(value, pair[0])
    monkeypatch.setattr(relations, 'ROOM', 1000)
    parts = loss(*pair)
    torch.testing.assert_close(parts, value)
    torch.testing.assert_close(torch.autograd.grad(parts, pair[0])[0], slope)


def test_no_matrix_of_all_pairs_is_held(monkeypatch):
    monkeypatch.setattr(relations, 'ROOM', 2**16)
    student, teacher = random_pair(((2, 16, 32, 32), (2, 16, 32, 32)), torch.float32)
    with Allocations() as made:
        CrossImageLoss()(student, teacher).backward()
    assert made.peak < 2048**2  # a quarter of a matrix in float32


@pytest.mark.parametrize(
    ('size', 'pool', 'nothing'),
    [((1, 1), None, True), ((2, 2), 2, True), ((2, 3), 2, False), (None, 4, False)],
)
def test_what_teaches_nothing(size, pool, nothing):
    assert (CrossImageLoss(pool=pool).teaches_nothing(3, size) is not None) is nothing


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(tau=0), ValueError, 'tau must be above 0'),
        (dict(pool=0), ValueError, 'pool must be at least 1, got 0'),
        (dict(pool=0.5), TypeError, 'pool must be an int or None'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        CrossImageLoss(**options)
