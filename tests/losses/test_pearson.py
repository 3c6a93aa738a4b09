from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_contract import LossContract, random_pair, value_and_grad

from mmkd_plugin.losses import PearsonLoss
from mmkd_plugin.losses.pearson import pearson


def standardised(channel):
    """(x - mean) / (std + 1e-6) with the unbiased deviation; 0 for a single value."""
    values = channel.ravel()
    mean = sum(values) / len(values)
    if len(values) == 1:
        return values - mean
    std = np.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
    return (values - mean) / (std + 1e-6)


class TestPearsonLoss(LossContract):
    name = 'PearsonLoss'
    variants = (dict(), dict(resize='teacher'))
    pairs = tuple(
        (shape, shape) for shape in ((2, 3, 4, 4), (1, 2, 5, 3), (3, 3, 1, 1), (1, 1, 1, 6))
    )
    same_size = False

    @staticmethod
    def reference(student, teacher, resize='student'):
        total = 0.0
        for c in range(student.shape[1]):
            gap = standardised(student[:, c]) - standardised(teacher[:, c])
            total += (gap**2).sum() / 2
        return total / student.size


@pytest.mark.parametrize('resize', ['student', 'teacher'])
@pytest.mark.parametrize('size', [(4, 6), (8, 3), (5, 6), (4, 9)])
def test_maps_of_two_sizes(resize, size):
    student, teacher = random_pair(((2, 3, *size), (2, 3, 4, 6)))
    value = pearson(student, teacher, resize)
    s, t = student.detach(), teacher
    if resize == 'student':
        s = F.interpolate(s, t.shape[2:], mode='bilinear', align_corners=False)
    else:
        t = F.interpolate(t, s.shape[2:], mode='bilinear', align_corners=False)
    assert value.item() == pytest.approx(TestPearsonLoss.reference(s.numpy(), t.numpy()))
    assert torch.autograd.gradcheck(lambda s: pearson(s, teacher, resize), student)


def test_it_is_one_minus_the_correlation():
    student, teacher = random_pair(((2, 1, 8, 8), (2, 1, 8, 8)))
    rows = np.stack([student.detach().numpy().ravel(), teacher.numpy().ravel()])
    expected = (1 - np.corrcoef(rows)[0, 1]) * 127 / 128  # unbiased deviations, plain mean
    assert pearson(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_level_and_scale_of_a_channel_do_not_matter():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    scale, level = torch.rand(2, 1, 3, 1, 1, dtype=torch.float64).unbind()
    value = pearson(student * (scale + 1) + 10 * level, teacher)
    torch.testing.assert_close(value, pearson(student, teacher), rtol=1e-5, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_a_constant_channel_becomes_zero_and_gets_no_gradient(dtype):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)), dtype)
    student = student.detach()
    student[:, 1] = 0.1
    value, grad = value_and_grad(PearsonLoss(), student, teacher)
    assert value.isfinite() and not grad[:, 1].any() and grad[:, 0].any()
    z = standardised(teacher[:, 1].double().numpy())
    others = pearson(student[:, ::2].double(), teacher[:, ::2].double()).item()
    assert value.item() == pytest.approx((2 * others + (z**2).mean() / 2) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ('size', 'images', 'nothing'),
    [((1, 1), 1, True), ((1, 1), 2, False), ((1, 2), 1, False), (None, 1, False)],
)
def test_what_teaches_nothing(size, images, nothing):
    reason = PearsonLoss().teaches_nothing(3, size, images)
    assert (reason is not None) is nothing
    if nothing:
        value, grad = value_and_grad(PearsonLoss(), *random_pair(((1, 3, 1, 1), (1, 3, 1, 1))))
        assert value.item() == 0 and not grad.any()


def test_resize_is_checked():
    with pytest.raises(ValueError, match="resize must be one of 'student', 'teacher', got 'none'"):
        PearsonLoss(resize='none')
