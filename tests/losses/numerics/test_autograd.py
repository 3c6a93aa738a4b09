from __future__ import annotations

import pytest
import torch
from memory import saved_bytes

from mmkd_plugin.losses.numerics.autograd import with_gradient


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
