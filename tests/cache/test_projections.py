"""Projections of channels: at random, and learnt from maps."""

from __future__ import annotations

import numpy as np
import pytest

from mmkd_plugin.cache.costs import distance_error
from mmkd_plugin.cache.projections import Principal, from_bytes, project, projection, to_bytes
from mmkd_plugin.cache.records import CacheError


def maps_of(channels: int, height: int, width: int, scale: float = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((channels, height, width))).astype(np.float32)


def test_projected_channels_keep_their_distances():
    matrix = projection(64, 16)
    assert matrix.shape == (16, 64) and np.array_equal(matrix, projection(64, 16))
    assert np.allclose(matrix @ matrix.T, 4 * np.eye(16), atol=1e-5)
    maps = maps_of(64, 12, 12)
    mixed = np.tensordot(matrix, maps, 1)
    assert (mixed**2).sum() == pytest.approx((maps**2).sum(), rel=0.1)
    assert 0 < distance_error(maps, mixed) < 0.25
    assert distance_error(maps, np.tensordot(projection(64, 63), maps, 1)) < 0.05


def test_a_learnt_projection_keeps_distances_where_channels_go_together():
    mixtures = maps_of(64, 6, 1)[..., 0]
    maps = [np.tensordot(mixtures, maps_of(6, 12, 12, seed=seed), 1) + 5 for seed in range(1, 4)]
    learnt = Principal(64)
    for one in maps[:2]:
        learnt.add(one)
    matrix = learnt.matrix(6)
    assert matrix.shape == (6, 64) and np.allclose(matrix @ matrix.T, np.eye(6), atol=1e-5)
    assert distance_error(maps[2], project(maps[2], matrix)) < 1e-3  # maps that it has not seen
    assert distance_error(maps[2], project(maps[2], projection(64, 6))) > 0.05
    assert project(maps[2], None) is maps[2]


def test_learnt_projections_come_back_from_the_store():
    matrices = [projection(8, 2), projection(6, 3)]
    data = to_bytes(matrices)
    for ours, theirs in zip(matrices, from_bytes(data), strict=True):
        assert np.array_equal(ours, theirs)
    with pytest.raises(CacheError, match='checksum'):
        from_bytes(data[:-1] + bytes([data[-1] ^ 1]))
