"""Sums over pieces of maps; what the losses make of these their own tests tell."""

from __future__ import annotations

import pytest
import torch
from allocations import Allocations

from mmkd_plugin.losses.numerics.one_pass import empty_map, one_pass, over_pieces

PIECE = 'mmkd_plugin.losses.numerics.pieces.PIECE'


def squares(s, t, slope):
    if slope is not None:
        torch.sub(s, t, out=slope).mul_(2)
    return (s - t).square().sum()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_value_and_gradient_do_not_depend_on_the_pieces(monkeypatch, layout):
    student, teacher = (
        torch.randn(3, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)
        for _ in range(2)
    )
    student.requires_grad_()
    results = []
    for room in (1, 50, 10**6):
        monkeypatch.setattr(PIECE, room)
        value = one_pass(squares, student, teacher, dim=2)
        (grad,) = torch.autograd.grad(3 * value, student)
        assert grad.is_contiguous(memory_format=layout)
        results.append((value, grad))
    for result in results:
        torch.testing.assert_close(result[0], (student - teacher).square().sum())
        torch.testing.assert_close(result[1], 6 * (student - teacher).detach())


def test_what_needs_no_gradient_makes_no_map():
    student, teacher = torch.randn(64, 8, 32, 32), torch.randn(64, 8, 32, 32)

    def no_slope(s, t, slope):
        assert slope is None
        return (s - t).square().sum()

    assert not one_pass(no_slope, student, teacher).requires_grad
    student.requires_grad_()
    with torch.no_grad(), Allocations() as allocations:
        value = one_pass(no_slope, student, teacher)
    assert not value.requires_grad
    assert allocations.largest < student.nbytes
    torch.testing.assert_close(over_pieces(no_slope, student, teacher).sum(), value)


def test_temporary_memory_is_that_of_a_piece():
    student, teacher = (torch.randn(256, 8, 32, 32) for _ in range(2))
    student.requires_grad_()
    with Allocations() as allocations:
        one_pass(squares, student, teacher).backward()
    assert allocations.peak < 2.01 * student.nbytes


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_large_map_has_the_layout_of_what_it_is_like(monkeypatch, dtype):
    monkeypatch.setattr('mmkd_plugin.losses.numerics.one_pass.HUGE', 0)
    x = torch.zeros(2, 16, 8, 6, dtype=torch.bfloat16)
    for like in (x, x.contiguous(memory_format=torch.channels_last), x.flatten(2), x[:, :, ::2]):
        made, expected = empty_map(like, dtype), torch.empty_like(like, dtype=dtype)
        assert made.dtype == dtype and made.shape == like.shape
        assert made.stride() == expected.stride()
        made.fill_(3)
        assert made.sum() == 3 * made.numel()
