"""Connectors: shapes in, shapes out."""

import pytest
import torch

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
