"""PHISNormalizer: mean 0 and variance 1 in each channel, by a rotation and a scale."""

from __future__ import annotations

import doctest

import pytest
import torch

from mmkd_plugin.connectors import PHISNormalizer, phis
from mmkd_plugin.connectors.phis import even_rotation, hadamard


@pytest.mark.parametrize('order', [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 60, 64, 76, 384, 768, 1152])
def test_hadamard_matrices(order):
    matrix = hadamard(order)
    assert matrix.abs().eq(1).all()
    torch.testing.assert_close(matrix @ matrix.mT, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize('order', [3, 6, 10, 52])
def test_a_rotation_stands_in_for_what_is_not_found(order):
    assert hadamard(order) is None
    rotation = even_rotation(order)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(order, dtype=torch.float64))
    assert torch.equal(rotation, even_rotation(order))


@pytest.mark.parametrize('channels', [8, 12, 20])
def test_each_channel_has_mean_0_and_variance_1(channels):
    torch.manual_seed(0)
    mix = torch.randn(channels, channels) * torch.logspace(-2, 2, channels)
    x = torch.einsum('dc,nchw->ndhw', mix, torch.randn(6, channels, 5, 4)) + 50
    normalizer = PHISNormalizer(channels).double().fit(x[n : n + 2].double() for n in (0, 2, 4))
    y = normalizer(x.double()).transpose(0, 1).flatten(1)
    zero, one = torch.zeros(channels).double(), torch.ones(channels).double()
    torch.testing.assert_close(y.mean(1), zero, atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var(1), one)


def test_distances_keep_their_ratios():
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64) * torch.arange(1, 9).view(8, 1, 1)
    y = PHISNormalizer(8).double().fit([x])(x)
    a, b = (torch.pdist(z.transpose(0, 1).flatten(1).mT) for z in (x, y))
    torch.testing.assert_close(a / b, (a / b).mean().expand_as(a))


def test_maps_of_a_large_mean_keep_their_digits():
    """In pieces and in half precision: the moments are those of the values in float64."""
    x = (torch.randn(6, 8, 5, 4) + 1000).half()
    normalizer = PHISNormalizer(8).double().fit(x.split(2))
    rows = x.double().transpose(0, 1).flatten(1)
    covariance = torch.cov(rows)
    torch.testing.assert_close(normalizer.mean, rows.mean(1))
    whitened = normalizer.weight @ covariance @ normalizer.weight.mT
    torch.testing.assert_close(whitened.diagonal(), torch.ones(8).double())
    scale = covariance.trace() / 8
    torch.testing.assert_close(
        normalizer.weight @ normalizer.weight.mT, torch.eye(8).double() / scale
    )


def test_example():
    results = doctest.testmod(phis)
    assert results.attempted and not results.failed
