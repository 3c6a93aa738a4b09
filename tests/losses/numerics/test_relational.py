from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.relational import (
    SquaredDistances,
    cosines,
    relative_to_mean,
    squared_distances,
)


def test_relations_of_points_on_a_line():
    x = torch.tensor([[[0.0], [0.0], [2.0]]])
    squares = squared_distances(x)
    torch.testing.assert_close(
        relative_to_mean(squares.sqrt())[0],
        torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 1, 0]]]).double(),
    )
    at_first = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 1]])
    at_last = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]])
    found, _ = cosines(squares, slice(None))
    torch.testing.assert_close(found, torch.stack([at_first, at_first, at_last])[None].double())


@pytest.mark.parametrize('piece', [2**17, 16, 1])
def test_squared_distances_part_by_part(piece, monkeypatch):
    monkeypatch.setattr('mmkd_plugin.losses.numerics.pieces.PIECE', piece)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SquaredDistances.apply, x)
    torch.testing.assert_close(squared_distances(x), torch.cdist(x, x).square())


@pytest.mark.parametrize('width', [3, 1000, 100_000])
def test_points_that_coincide_have_a_distance_of_exactly_zero(width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, width, generator=generator) * 100 + 1e4
    x[:, ::7] = x[:, :1]
    squares = SquaredDistances.apply(x)[0]
    same = torch.zeros(64, dtype=torch.bool)
    same[::7] = True
    equal = (same[:, None] & same) | torch.eye(64, dtype=torch.bool)
    assert torch.equal(squares == 0, equal)
