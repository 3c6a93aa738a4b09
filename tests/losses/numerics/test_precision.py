from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.precision import full_precision


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
