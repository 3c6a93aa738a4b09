"""Paraphraser and Translator: layer by layer against plain loops, and the training of the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.connectors import Paraphraser, Translator
from mmkd_plugin.registry import MODELS


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def conv(x, weight, bias):
    """3x3, zero padding: each output position gathers its neighbours."""
    out = np.zeros((len(weight), *x.shape[1:]))
    for y, column in np.ndindex(x.shape[1:]):
        out[:, y, column] = bias
        for dy, dx in np.ndindex(3, 3):
            row, col = y + dy - 1, column + dx - 1
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                out[:, y, column] += weight[:, :, dy, dx] @ x[:, row, col]
    return out


def deconv(x, weight, bias):
    """3x3, transposed: each input position is spread over its neighbours."""
    out = np.zeros((weight.shape[1], *x.shape[1:])) + bias[:, None, None]
    for y, column in np.ndindex(x.shape[1:]):
        for dy, dx in np.ndindex(3, 3):
            row, col = y + dy - 1, column + dx - 1
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                out[:, row, col] += weight[:, :, dy, dx].T @ x[:, y, column]
    return out


def by_hand(module, x, layer):
    """The layers of a part, from its state dict alone."""
    state = [value.numpy() for value in module.state_dict().values()]
    assert len(state) == 6  # three weights, three biases
    for weight, bias in zip(state[::2], state[1::2], strict=True):
        x = leaky(layer(x, weight, bias))
    return x


def shapes(module):
    return [tuple(value.shape) for value in module.state_dict().values() if value.ndim == 4]


@pytest.fixture
def paraphraser():
    torch.manual_seed(0)
    return Paraphraser(4).double()


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).double()


def test_factor_and_reconstruction(paraphraser, x):
    factor, output = paraphraser(x), paraphraser.reconstruct(x)
    assert factor.shape == (2, 2, 3, 5) and output.shape == x.shape
    for n in range(2):
        expected = by_hand(paraphraser.encoder, x[n].numpy(), conv)
        np.testing.assert_allclose(factor[n].detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        expected = by_hand(paraphraser.decoder, expected, deconv)
        np.testing.assert_allclose(output[n].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_translator():
    torch.manual_seed(0)
    translator, x = Translator(3, 5).double(), torch.randn(1, 3, 4, 2).double()
    expected = by_hand(translator.encoder, x[0].numpy(), conv)
    np.testing.assert_allclose(translator(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_widths():
    assert shapes(Paraphraser(8).encoder) == [(8, 8, 3, 3), (4, 8, 3, 3), (4, 4, 3, 3)]
    assert shapes(Paraphraser(8).decoder) == [(4, 4, 3, 3), (4, 8, 3, 3), (8, 8, 3, 3)]
    assert shapes(Translator(3, 5)) == [(3, 3, 3, 3), (5, 3, 3, 3), (5, 5, 3, 3)]


@pytest.mark.parametrize(
    ('in_channels', 'ratio', 'expected'),
    [(64, 0.5, 32), (7, 0.5, 4), (100, 0.29, 29), (1, 0.5, 1), (3, 0.1, 1), (4, 1, 4), (4, 1.5, 6)],
)
def test_width_of_the_factor(in_channels, ratio, expected):
    paraphraser = Paraphraser(in_channels, ratio)
    assert paraphraser.out_channels == expected
    assert paraphraser(torch.rand(1, in_channels, 2, 2)).shape == (1, expected, 2, 2)


@pytest.mark.parametrize(
    ('ratio', 'error'), [(0, ValueError), (-0.5, ValueError), ('0.5', TypeError)]
)
def test_ratio_is_checked(ratio, error):
    with pytest.raises(error, match='ratio must be'):
        Paraphraser(8, ratio)


def test_built_from_config():
    paraphraser = MODELS.build(dict(type='mmkd_plugin.Paraphraser', in_channels=8, ratio=0.25))
    translator = MODELS.build(
        dict(type='mmkd_plugin.Translator', in_channels=3, out_channels=paraphraser.out_channels)
    )
    assert paraphraser.out_channels == translator.out_channels == 2
    assert '8, ratio=0.25' in repr(paraphraser) and '3, 2' in repr(translator)


# --- training --------------------------------------------------------------------------------


def test_reconstruction_loss_is_the_mean_absolute_error(paraphraser, x):
    x.requires_grad_()
    loss = paraphraser.reconstruction_loss(x)
    loss.backward()
    output = paraphraser.reconstruct(x).detach().numpy()
    expected = (
        sum(abs(a - b) for a, b in zip(output.flat, x.detach().numpy().flat, strict=True))
        / x.numel()
    )
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-12)
    assert x.grad is None
    assert all(p.grad.any() for p in paraphraser.parameters())


def test_reconstruction_loss_of_an_empty_batch(paraphraser, x):
    assert paraphraser.reconstruction_loss(x[:0]).item() == 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_reconstruction_loss_in_float32(paraphraser, x, dtype):
    x = x.to(dtype) * 1e3
    expected = paraphraser.float().reconstruction_loss(x.float())
    with torch.autocast('cpu', dtype):
        loss = paraphraser.reconstruction_loss(x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    paraphraser.to(dtype)
    output = paraphraser.reconstruct(x)
    expected = (output.double() - x.double()).abs().mean()
    assert paraphraser.reconstruction_loss(x).item() == pytest.approx(expected.item(), rel=1e-6)


def test_training_learns_to_reconstruct():
    torch.manual_seed(0)
    x = torch.randn(16, 4, 6, 6).repeat(1, 4, 1, 1).relu()  # a quarter of the channels is enough
    paraphraser = Paraphraser(16)
    optimizer = torch.optim.Adam(paraphraser.parameters(), lr=5e-3)
    first = paraphraser.reconstruction_loss(x).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = paraphraser.reconstruction_loss(x)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


def test_the_factor_needs_no_decoder(paraphraser, x):
    factor, whole = paraphraser(x), set(paraphraser.state_dict())
    paraphraser.drop_decoder()
    assert torch.equal(paraphraser(x), factor)
    assert {name for name in whole if name.startswith('encoder')} == {*paraphraser.state_dict()}
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in paraphraser.modules())
    for method in (paraphraser.reconstruct, paraphraser.reconstruction_loss):
        with pytest.raises(RuntimeError, match='has dropped its decoder'):
            method(x)
    paraphraser.drop_decoder()  # twice does no harm
