from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from allocations import Allocations
from loss_contract import LossContract, random_pair, value_and_grad
from memory import saved_bytes

from mmkd_plugin.losses import NeuronSelectivityLoss
from mmkd_plugin.losses.neuron_selectivity import neuron_selectivity, patterns

KERNELS = ('polynomial', 'linear', 'gaussian')


def rows_of(sample, size):
    """Average-pools a sample to a size and gives the unit vector of each channel."""

    def windows(old, new):
        return [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]

    rows = []
    for channel in sample:
        pooled = [
            channel[top:bottom, left:right].mean()
            for top, bottom in windows(channel.shape[0], size[0])
            for left, right in windows(channel.shape[1], size[1])
        ]
        rows.append(np.array(pooled) / np.sqrt(np.square(pooled).sum()))
    return rows


def discrepancy(s, t, kernel):
    """The formula for the rows of one sample."""
    between = [((a - b) ** 2).sum() for a in s for b in t]
    kernels = dict(
        polynomial=lambda a, b: (a @ b) ** 2,
        linear=lambda a, b: a @ b,
        gaussian=lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * np.mean(between))),
    )

    def mean(first, second):
        return np.mean([kernels[kernel](a, b) for a in first for b in second])

    return mean(t, t) + mean(s, s) - 2 * mean(s, t)


class TestNeuronSelectivityLoss(LossContract):
    name = 'NeuronSelectivityLoss'
    variants = tuple(dict(kernel=kernel) for kernel in KERNELS)
    pairs = (
        ((2, 3, 4, 4), (2, 5, 4, 4)),  # more positions than channels
        ((1, 3, 5, 3), (1, 3, 5, 3)),  # equal channel counts
        ((2, 9, 2, 3), (2, 4, 2, 3)),  # more channels than positions
        ((2, 3, 7, 5), (2, 2, 3, 5)),  # the student is higher
        ((1, 2, 2, 3), (1, 3, 4, 6)),  # the teacher is larger
        ((1, 2, 5, 3), (1, 3, 3, 4)),  # one is higher, the other wider
        ((2, 3, 1, 1), (2, 3, 1, 1)),
    )
    same_channels = False
    same_size = False

    @staticmethod
    def reference(student, teacher, kernel='polynomial'):
        size = tuple(map(min, student.shape[2:], teacher.shape[2:]))
        return float(
            np.mean(
                [
                    discrepancy(rows_of(s, size), rows_of(t, size), kernel)
                    for s, t in zip(student, teacher)
                ]
            )
        )


def test_known_values():
    # two channels at right angles against one that equals the first of them
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[5.0, 0.0]]).view(1, 1, 1, 2)
    # t,t': 1; s,s': two of four pairs; s,t: one of two
    assert neuron_selectivity(student, teacher).item() == pytest.approx(1 + 0.5 - 2 * 0.5)
    assert neuron_selectivity(student, teacher, 'linear').item() == pytest.approx(0.5)
    # squared distances 0 and 2 to the teacher: sigma^2 is 1
    far = math.exp(-1)
    expected = 1 + (1 + far) / 2 - (1 + far)
    assert neuron_selectivity(student, teacher, 'gaussian').item() == pytest.approx(expected)


def test_the_sign_of_a_channel_matters_to_two_kernels():
    student, _ = random_pair(((2, 3, 4, 4),) * 2)
    for kernel in KERNELS:
        value = neuron_selectivity(student, -student.detach(), kernel).item()
        assert value == pytest.approx(0, abs=1e-12) if kernel == 'polynomial' else value > 0.01


@pytest.mark.parametrize('kernel', KERNELS)
def test_order_copies_and_length_of_channels_do_not_matter(kernel):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 5, 4, 4)))
    expected = neuron_selectivity(student, teacher, kernel)
    lengths = torch.rand(2, 3, 1, 1, dtype=torch.float64) + 0.1
    others = student.flip(1), student.repeat(1, 2, 1, 1), student * lengths
    for other in others:
        torch.testing.assert_close(neuron_selectivity(other, teacher, kernel), expected)
    for same in (teacher.repeat(1, 2, 1, 1), teacher.flip(1)):
        assert neuron_selectivity(teacher, same, kernel).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('kernel', KERNELS)
def test_channels_of_zeros_stay_zero_and_get_no_gradient(kernel):
    student, teacher = random_pair(((2, 4, 4, 4), (2, 3, 4, 4)), torch.float32)
    student = student.detach()
    student[:, 1] = 0
    student[:, 2] = 1e-13 / 4
    teacher[0, 0] = 0
    assert not patterns(student)[:, 1:3].any()
    value, grad = value_and_grad(NeuronSelectivityLoss(kernel), student, teacher)
    assert value.isfinite() and not grad[:, 1:3].any() and grad[:, (0, 3)].abs().amax((2, 3)).all()
    rows = [patterns(x.double()).numpy() for x in (student, teacher)]
    expected = np.mean([discrepancy(s, t, kernel) for s, t in zip(*rows)])
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gaussian_where_all_channels_are_alike(dtype):
    # all distances are 0, but for rounding, and so is sigma^2
    pattern = torch.rand(2, 1, 5, 7, dtype=dtype) + 0.1
    student, teacher = pattern * (torch.rand(2, 4, 1, 1, dtype=dtype) + 0.1), pattern * 3
    value, grad = value_and_grad(NeuronSelectivityLoss('gaussian'), student, teacher)
    assert 0 <= value.item() < 1e-6 and grad.abs().max() < 1e-2
    value, grad = value_and_grad(NeuronSelectivityLoss('gaussian'), pattern, pattern.clone())
    assert value.item() == 0 and not grad.any()


def test_gaussian_keeps_its_digits_where_channels_are_close():
    # only the ratio of the distances counts, as long as they exceed the rounding of the patterns
    student, teacher = random_pair(((1, 4, 6, 6), (1, 3, 6, 6)))
    for spread in (1e-1, 3e-2, 1e-2):
        s, t = student.detach() * spread + 1, teacher * spread + 1
        expected, slope = value_and_grad(NeuronSelectivityLoss('gaussian'), s, t)
        value, grad = value_and_grad(NeuronSelectivityLoss('gaussian'), s.float(), t.float())
        assert value.item() == pytest.approx(expected.item(), rel=1e-2)
        assert (grad - slope).norm() <= 1e-2 * slope.norm()


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize(
    'shapes', [((2, 16, 16, 16), (2, 24, 16, 16)), ((2, 16, 9, 9), (2, 16, 9, 9))]
)
def test_float32_is_as_good_as_float64(kernel, shapes):
    student, teacher = (x.detach().relu() for x in random_pair(shapes))
    expected, slope = value_and_grad(NeuronSelectivityLoss(kernel), student, teacher)
    value, grad = value_and_grad(NeuronSelectivityLoss(kernel), student.float(), teacher.float())
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (grad - slope).norm() <= 1e-4 * slope.norm()


@pytest.mark.parametrize('kernel', KERNELS)
def test_never_below_zero(kernel):
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        student = torch.randn(2, 8, 8, 8, generator=generator).relu().requires_grad_()
        teacher = student.detach().flip(1).repeat(1, 3, 1, 1)  # the same patterns
        loss = neuron_selectivity(student, teacher, kernel)
        assert 0 <= loss.item() < 1e-6 and loss.requires_grad


@pytest.mark.parametrize(
    ('kernel', 'shape', 'other', 'matrix'),
    [
        ('polynomial', (1, 64, 64, 128), (1, 128, 64, 128), 128 * 128),
        ('polynomial', (1, 1024, 4, 4), (1, 2048, 4, 4), 16 * 16),
        ('linear', (1, 1024, 4, 4), (1, 2048, 4, 4), 16),
        ('linear', (1, 2, 64, 128), (1, 2, 64, 128), 64 * 128),
        ('gaussian', (1, 64, 64, 128), (1, 128, 64, 128), 128 * 128),
    ],
)
def test_memory(kernel, shape, other, matrix):
    student, teacher = random_pair((shape, other), torch.float32)
    loss = NeuronSelectivityLoss(kernel)
    assert saved_bytes(lambda: loss(student, teacher), student, teacher) == 4 * student.numel()
    with Allocations() as made:
        loss(student, teacher).backward()
    assert made.largest == 4 * max(matrix, student.numel(), teacher.numel())
    assert made.peak < 6 * made.largest


@pytest.mark.parametrize('kernel', ['poly', '', None, 2, ['linear']])
def test_kernel_is_checked(kernel):
    with pytest.raises(ValueError, match='kernel must be one of') as error:
        NeuronSelectivityLoss(kernel=kernel)
    assert "'polynomial', 'linear', 'gaussian', got" in str(error.value)
