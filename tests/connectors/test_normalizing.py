"""Normalisers of channels: what both have in common, and that of each channel by itself."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from mmkd_plugin.connectors import ChannelNormalizer, PHISNormalizer, normalizing

KINDS = [ChannelNormalizer, PHISNormalizer]


@pytest.mark.parametrize('kind', KINDS)
def test_its_state_is_stored(kind):
    x = torch.randn(3, 8, 5, 4)
    first, second = kind(8).fit([x]), kind(8)
    assert sorted(first.state_dict()) == ['mean', 'weight'] and not list(first.parameters())
    with pytest.raises(ValueError, match=f'this {kind.__name__} is not fitted'):
        second(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(first(x), second(x)) and first(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize('kind', KINDS)
def test_a_fitted_one_does_not_wait_for_the_device(kind):
    """On the meta device there are no values to wait for."""
    x = torch.randn(3, 8, 5, 4)
    normalizer = kind(8).fit([x])
    normalizer(x)
    assert normalizer.to('meta')(x.to('meta')).shape == x.shape


@pytest.mark.parametrize('kind', KINDS)
def test_too_little_to_measure(kind):
    with pytest.raises(ValueError, match='needs two positions or more to be fitted, got 1'):
        kind(4).fit([torch.ones(1, 4, 1, 1)])
    with pytest.raises(ValueError, match='needs two positions or more to be fitted, got 0'):
        kind(4).fit([])
    with pytest.raises(ValueError, match='all positions are alike'):
        kind(4).fit([torch.ones(2, 4, 3, 3)])


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_not_finite(kind):
    with pytest.raises(ValueError, match='maps that are not finite'):
        kind(4).fit([torch.full((1, 4, 2, 2), torch.inf)])


@pytest.mark.parametrize('kind', KINDS)
def test_a_second_fit_starts_anew(kind):
    x, y = torch.randn(2, 3, 8, 5, 4).unbind()
    normalizer = kind(8).fit([y]).fit([x])
    assert torch.equal(normalizer.weight, kind(8).fit([x]).weight)


def test_each_channel_is_standardised_by_itself():
    """By the formula, channel by channel, with a mean that is large beside the deviation."""
    x = torch.randn(6, 5, 3, 4) * torch.logspace(-3, 3, 5).view(5, 1, 1) + 50
    x[:, 3] = 7.3  # a channel that does not vary
    normalizer = ChannelNormalizer(5).double().fit(x.split(2))
    expected = np.zeros(x.shape)
    for c in (0, 1, 2, 4):
        values = x[:, c].double().numpy()
        expected[:, c] = (values - values.mean()) / values.std(ddof=1)
    np.testing.assert_allclose(normalizer(x.double()).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_example():
    results = doctest.testmod(normalizing)
    assert results.attempted and not results.failed
