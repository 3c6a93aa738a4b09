from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from mmkd_plugin.losses.numerics.pooling import adaptive_pool, max_pool, pool_to_common_size

SIZES = ((9, 7), (8, 12), (1, 5))


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.setattr('mmkd_plugin.losses.numerics.pooling.is_compiling', lambda: True)


def assert_same(pool, reference, x):
    value, expected = pool(x), reference(x)
    torch.testing.assert_close(value, expected)
    weights = torch.randn_like(expected)
    grads = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (value, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('new', [(1, 1), (3, 4), (9, 5), (5, 5)])
@pytest.mark.parametrize('pool', ['avg', 'max'])
def test_adaptive_pooling_while_traced(compiling, size, new, pool):
    new = tuple(map(min, size, new))
    reference = dict(avg=F.adaptive_avg_pool2d, max=F.adaptive_max_pool2d)[pool]
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert_same(lambda x: adaptive_pool(x, new, pool), lambda x: reference(x, new), x)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kernel', [(1, 1), (2, 3), (4, 4), (9, 12)])
def test_max_pooling_while_traced(compiling, size, kernel):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert_same(
        lambda x: max_pool(x, kernel),
        lambda x: F.max_pool2d(x, kernel, kernel, ceil_mode=True),
        x,
    )


@pytest.mark.parametrize('pool', ['avg', 'max'])
def test_all_sizes_share_one_graph(pool):
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(pool_to_common_size, backend=graphs, fullgraph=True, dynamic=True)
    for n, size in enumerate(((12, 14), (15, 22), (23, 32))):
        a, b = torch.randn(2 + n, 3, *size), torch.randn(2 + n, 5, size[0] // 2, size[1] // 3)
        for found, expected in zip(compiled(a, b, pool), pool_to_common_size(a, b, pool)):
            torch.testing.assert_close(found, expected)
    assert graphs.frame_count == 1
