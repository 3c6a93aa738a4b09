from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.pair_wise import nodes
from mmkd_plugin.losses.numerics.vectors import gram_gap, unit_vectors


@pytest.mark.parametrize(
    ('pool', 'size', 'expected'),
    [
        (None, (5, 7), (5, 7)),
        (1, (5, 7), (5, 7)),
        (2, (5, 7), (3, 4)),
        (4, (1, 1), (1, 1)),
        (8, (5, 7), (1, 1)),
        (0.5, (8, 16), (2, 2)),
        (0.5, (9, 5), (3, 3)),
        (0.25, (8, 16), (4, 4)),
        (0.1, (4, 4), (4, 4)),  # a kernel of at least 1
    ],
)
def test_nodes(pool, size, expected):
    assert nodes(torch.ones(1, 1, *size), pool).shape[2:] == expected


@pytest.mark.parametrize('padding', [0, 16])
@pytest.mark.parametrize('seed', range(5))
def test_equal_cosines_never_cost_less_than_nothing(padding, seed):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 16, 256, generator=generator).relu()
    teacher = torch.cat([student, torch.zeros(2, padding, 256)], dim=1)
    size = teacher.shape[1]
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    for other in (teacher, rotation @ teacher):
        s, t = unit_vectors(student), unit_vectors(other)
        gap, _ = gram_gap(s, t)
        assert 0 <= gap.item() / (2 * 256**2) < 1e-7
