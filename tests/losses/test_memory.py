from __future__ import annotations

import torch
from memory import saved_bytes


def test_storages_are_counted_once_and_inputs_apart():
    x, y = (torch.randn(10, 4, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda: x + y, x, y) == 0
    assert saved_bytes(lambda: x * y, x, y) == saved_bytes(lambda: x.mT[1:].square(), x) == 0
    assert saved_bytes(lambda: x * y, x) == 160
    assert saved_bytes(lambda: x.exp(), x) == 160
    assert saved_bytes(lambda: x.exp().square(), x) == 160  # the same map twice
    assert saved_bytes(lambda: x.exp().sin().sin(), x) == 2 * 160
    assert saved_bytes(lambda: x.detach().exp().sin(), x) == 0
