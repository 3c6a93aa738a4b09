from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    finite_number,
    labels_at,
    positive_number,
)


def test_check_shapes_can_be_relaxed():
    student, teacher = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 8, 8)
    check_shapes(student, teacher, same_channels=False, same_size=False)
    with pytest.raises(ValueError, match=r'map sizes differ.*; do this'):
        check_shapes(student, teacher, same_channels=False, size_hint='do this')
    with pytest.raises(ValueError, match=r'expected two tensors \(N, C\) or \(N, C, H, W\)'):
        check_shapes(student[:, :, 0, 0], teacher, ndims=(2, 4))


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
