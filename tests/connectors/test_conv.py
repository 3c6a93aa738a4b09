"""ConvConnector: shapes in, shapes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.registry import MODELS


@pytest.mark.parametrize('kernel_size', [1, 3])
def test_channels_change_and_the_size_stays(kernel_size):
    connector = MODELS.build(
        dict(
            type='mmkd_plugin.ConvConnector',
            in_channels=3,
            out_channels=5,
            kernel_size=kernel_size,
            bias=False,
        )
    )
    assert connector(torch.rand(2, 3, 7, 9)).shape == (2, 5, 7, 9)
    assert connector.bias is None


def test_one_by_one_is_a_product_per_position():
    torch.manual_seed(0)
    connector, x = ConvConnector(3, 2), torch.rand(1, 3, 4, 5)
    expected = torch.einsum('oc,nchw->nohw', connector.weight[:, :, 0, 0], x)
    torch.testing.assert_close(connector(x), expected + connector.bias.view(1, -1, 1, 1))


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match='kernel_size must be odd to keep the map size, got 2'):
        ConvConnector(3, 5, kernel_size=2)


def test_names_in_the_state_dict():
    assert list(ConvConnector(3, 5).state_dict()) == ['weight', 'bias']
    names = list(ConvConnector(3, 5, bias=False, norm=True).state_dict())
    assert names[:3] == ['weight', 'norm.weight', 'norm.bias']


@pytest.mark.parametrize('bias', [False, True])
def test_norm_follows_the_convolution(bias):
    torch.manual_seed(0)
    connector, x = ConvConnector(3, 5, bias=bias, norm=True), torch.randn(4, 3, 6, 7)
    conv = nn.functional.conv2d(x, connector.weight, connector.bias)
    mean = conv.mean((0, 2, 3), keepdim=True)
    var = conv.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(connector(x), (conv - mean) / (var + 1e-5).sqrt())
    connector.eval()  # with the running statistics: 0.1 of this batch, the rest 0 and 1
    mean, var = 0.1 * mean, 0.9 + 0.1 * conv.var((0, 2, 3), keepdim=True)
    torch.testing.assert_close(connector(x), (conv - mean) / (var + 1e-5).sqrt())


@pytest.mark.parametrize('norm', [False, True])
def test_a_relu_comes_last(norm):
    torch.manual_seed(0)
    connector, x = ConvConnector(3, 5, bias=False, norm=norm, act=True), torch.randn(4, 3, 6, 7)
    plain = ConvConnector(3, 5, bias=False, norm=norm)
    plain.load_state_dict(connector.state_dict())
    assert (plain(x) < 0).any()
    torch.testing.assert_close(connector(x), plain(x).clamp(min=0))
    assert connector.summary == plain.summary + ' + ReLU'


def test_norm_is_synchronised_where_the_model_is():
    connector = nn.SyncBatchNorm.convert_sync_batchnorm(ConvConnector(3, 5, norm=True))
    assert isinstance(connector, ConvConnector) and isinstance(connector.norm, nn.SyncBatchNorm)
