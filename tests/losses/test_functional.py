from __future__ import annotations

import pytest
import torch
from memory import saved_bytes

from mmkd_plugin.losses.functional import (
    check_shapes,
    finite_number,
    full_precision,
    labels_at,
    nz,
    positive_number,
    sum_over_maps,
    with_gradient,
)


@pytest.mark.parametrize(
    ('student', 'teacher', 'expected'),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_full_precision_is_one_type_of_at_least_float32(student, teacher, expected):
    student = torch.ones(2, dtype=student, requires_grad=True)
    teacher = torch.ones(2, dtype=teacher, requires_grad=True)
    with full_precision(student, teacher) as (s, t):
        assert s.dtype == t.dtype == expected
        assert s.requires_grad and not t.requires_grad


def test_full_precision_suspends_autocast():
    x = torch.ones(2, 2)
    with torch.autocast('cpu', torch.bfloat16):
        with full_precision(x, x) as (s, t):
            assert (s @ t).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_full_precision_on_a_device_without_autocast():
    x = torch.ones(2, 2, dtype=torch.float16, device='meta')
    with full_precision(x, x) as (s, t):
        assert (s @ t).dtype == torch.float32


def test_check_shapes_can_be_relaxed():
    student, teacher = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 8, 8)
    check_shapes(student, teacher, same_channels=False, same_size=False)
    with pytest.raises(ValueError, match=r'map sizes differ.*; do this'):
        check_shapes(student, teacher, same_channels=False, size_hint='do this')
    with pytest.raises(ValueError, match=r'expected two tensors \(N, C\) or \(N, C, H, W\)'):
        check_shapes(student[:, :, 0, 0], teacher, ndims=(2, 4))


def test_sum_over_maps_pairs_in_order():
    maps = [torch.tensor(float(i)) for i in (1, 2, 3)]
    total = sum_over_maps(lambda s, t: s * 10 + t, maps, tuple(reversed(maps)))
    assert total.item() == 66
    assert sum_over_maps(lambda s, t: s - t, maps[2], [maps[0]]).item() == 2


def test_numbers():
    assert positive_number('x', 4) == 4 and finite_number('x', -0.5) == -0.5
    with pytest.raises(ValueError, match='x must be above 0, got 0'):
        positive_number('x', 0)
    with pytest.raises(ValueError, match='x must be finite, got nan'):
        finite_number('x', float('nan'))
    with pytest.raises(TypeError, match=r'x must be a number, got \[1\]'):
        positive_number('x', [1])


@pytest.mark.parametrize('size', [(9, 7), (3, 4), (64, 100), (1, 1), (18, 3)])
@pytest.mark.parametrize('new', [(4, 5), (9, 7), (1, 1), (13, 30)])
def test_labels_at_is_nearest_and_exact(size, new):
    labels = torch.arange(2 * size[0] * size[1]).view(2, *size)
    expected = torch.nn.functional.interpolate(labels[:, None].double(), new)[:, 0].long()
    assert torch.equal(labels_at(torch.ones(2, 3, *new), labels), expected)
    assert torch.equal(labels_at(torch.ones(2, 3, *new), labels + 2**60 + 1), expected + 2**60 + 1)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_at_gives_int64(dtype):
    for size in ((2, 2), (4, 4)):
        labels = torch.full((1, *size), 100, dtype=dtype)
        got = labels_at(torch.ones(1, 1, 2, 2), labels)
        assert got.dtype == torch.int64 and got.shape == (1, 2, 2) and (got == 100).all()


def test_labels_at_of_an_empty_batch():
    labels = torch.zeros(0, 5, 7, dtype=torch.int64)
    assert labels_at(torch.ones(0, 3, 2, 4), labels).shape == (0, 2, 4)


def test_labels_at_refuses():
    x = torch.ones(2, 3, 4, 4)
    for shape in ((1, 4, 4), (2, 1, 4, 4), (4, 4), (2, 0, 4)):
        with pytest.raises(ValueError, match='labels do not fit the maps') as error:
            labels_at(x, torch.ones(shape, dtype=torch.int64))
        assert f'labels {shape}, student (2, 3, 4, 4)' in str(error.value)
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f'labels must be integers, got {dtype}'):
            labels_at(x, torch.ones(2, 4, 4, dtype=dtype))
    for wrong in (None, [[1]]):
        with pytest.raises(TypeError, match='labels must be a tensor of integers, got'):
            labels_at(x, wrong)


def test_nz_brings_each_sample_to_unit_length():
    x = torch.randn(3, 2, 4, 5)
    x[1] = 0
    x[2] *= 1e-3
    x = x.requires_grad_()
    out = nz(x)
    torch.testing.assert_close(out[0], (x[0] / x[0].square().sum().sqrt()).flatten())
    torch.testing.assert_close(out.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    out.pow(3).sum().backward()
    assert x.grad[0].any() and x.grad[2].any() and x.grad.isfinite().all()
    assert not torch.autograd.grad(nz(x)[1].sum(), x)[0].any()  # not 1e12
    assert nz(x[:0]).shape == (0, 40)


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
