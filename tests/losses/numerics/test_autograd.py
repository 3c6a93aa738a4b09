from __future__ import annotations

import pytest
import torch
from memory import saved_bytes

from mmkd_plugin.losses.numerics.autograd import keeping_gradients, with_gradient


def test_a_known_gradient_is_all_that_is_kept():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def cubes(x):
        return x.pow(3).sum(), 3 * x.square()

    assert torch.autograd.gradcheck(lambda x: 5 * with_gradient(cubes, x), x)
    assert saved_bytes(lambda: with_gradient(cubes, x), x) == 3 * 4 * 8
    value = with_gradient(cubes, x)
    for _ in range(2):  # the graph may be kept
        (grad,) = torch.autograd.grad(value, x, retain_graph=True)
        torch.testing.assert_close(grad, 3 * x.detach().square())
    assert not with_gradient(cubes, x.detach()).requires_grad
    with pytest.raises(RuntimeError, match='this loss has no second derivative'):
        torch.autograd.grad(value, x, create_graph=True)


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5))


def test_gradients_of_maps_and_weights_are_all_that_is_kept():
    module, x = layers().double(), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    still = module[0].bias.requires_grad_(False)
    learning = [p for p in module.parameters() if p is not still]

    def compute(x):
        return module(x).square().sum()

    def loss(x, *_):
        return 3 * keeping_gradients(compute, x, weights=module.parameters())

    assert torch.autograd.gradcheck(loss, (x, *learning))
    kept = 8 * sum(p.numel() for p in (x, *learning))
    assert saved_bytes(lambda: keeping_gradients(compute, x, weights=learning), x) == kept
    expected = torch.autograd.grad(3 * compute(x), [x, *learning])
    for value in (loss(x), loss(x.detach())):  # a map that is not trained, as of frozen stages
        wanted = [p for p in (x, *learning) if p is not x or value.requires_grad]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
        torch.testing.assert_close(found[1:], expected[1:])
    with torch.no_grad():
        assert not loss(x).requires_grad


def test_float16_waits_for_the_factor_of_the_gradient_scaler():
    """Taken at once, these gradients would be 0 in float16."""
    module, x = layers(), torch.randn(7, 4, requires_grad=True)
    with torch.autocast('cpu', torch.float16):
        value = keeping_gradients(lambda x: module(x).float().mean() * 1e-7, x)
    (value * 2**20).backward()
    assert x.grad.any()
