from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from allocations import Allocations
from loss_contract import LossContract, random_pair, value_and_grad
from memory import saved_bytes

from mmkd_plugin.losses import PairWiseLoss
from mmkd_plugin.losses.numerics.pair_wise import nodes
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.losses.pair_wise import pair_wise


class TestPairWiseLoss(LossContract):
    name = 'PairWiseLoss'
    variants = (dict(), dict(pool=1), dict(pool=3), dict(pool=0.5), dict(pool=None))
    pairs = (
        ((2, 3, 4, 4), (2, 5, 4, 4)),  # more positions than channels, counts differ
        ((1, 3, 5, 3), (1, 3, 5, 3)),  # more positions than channels, counts agree
        ((2, 9, 2, 3), (2, 4, 2, 3)),  # more channels than positions
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 1, 1, 6), (1, 4, 1, 6)),
    )
    same_channels = False

    @staticmethod
    def reference(student, teacher, pool=2):
        def vectors(sample):
            _, height, width = sample.shape
            if pool is None:
                kernel = (1, 1)
            elif isinstance(pool, float):
                kernel = (max(int(pool * height), 1), max(int(pool * width), 1))
            else:
                kernel = (pool, pool)
            nodes = []
            for y in range(0, height, kernel[0]):
                for x in range(0, width, kernel[1]):
                    window = sample[:, y : y + kernel[0], x : x + kernel[1]]
                    node = window.max(axis=(1, 2))
                    nodes.append(node / np.sqrt((node**2).sum()))
            return nodes

        total = 0.0
        for s, t in zip(map(vectors, student), map(vectors, teacher)):
            for i in range(len(s)):
                for j in range(len(s)):
                    total += (t[i] @ t[j] - s[i] @ s[j]) ** 2 / len(s) ** 2
        return total / len(student)


# --- pooling ---------------------------------------------------------------------------------


def test_fraction_compares_maps_of_two_sizes():
    loss = PairWiseLoss(pool=0.5)
    assert loss.needs_same_size is False
    assert PairWiseLoss(pool=2).needs_same_size and PairWiseLoss(pool=None).needs_same_size
    student, teacher = random_pair(((2, 3, 4, 6), (2, 5, 8, 12)))
    pooled = nodes(student, 0.5), nodes(teacher, 0.5)
    torch.testing.assert_close(loss(student, teacher), pair_wise(*pooled, pool=None))


def test_fraction_that_leaves_different_nodes_is_refused():
    with pytest.raises(ValueError, match='map sizes differ') as error:
        PairWiseLoss(pool=0.5)(torch.ones(1, 2, 9, 9), torch.ones(1, 2, 8, 8))
    assert str(error.value) == (
        'map sizes differ: student (1, 2, 9, 9), teacher (1, 2, 8, 8) leave (3, 3) and (2, 2) '
        'positions with pool=0.5; name a `connector` that resizes'
    )


def test_sizes_error_offers_the_fraction():
    with pytest.raises(ValueError, match=r'bilinear resize is added, or set `pool=0\.5`'):
        PairWiseLoss()(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 8, 8))


@pytest.mark.parametrize(
    ('pool', 'error'),
    [
        (0, ValueError),
        (-1, ValueError),
        (0.0, ValueError),
        (1.0, ValueError),
        (2.5, ValueError),
        (math.nan, ValueError),
        ('2', TypeError),
        (True, TypeError),
        ((2, 2), TypeError),
    ],
)
def test_pool_is_checked(pool, error):
    with pytest.raises(error, match='pool'):
        PairWiseLoss(pool=pool)


# --- norms -----------------------------------------------------------------------------------


def test_detached_norms_change_only_the_gradient():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    value, grad = value_and_grad(PairWiseLoss(), student, teacher)
    detached, slope = value_and_grad(PairWiseLoss(detach_norm=True), student, teacher)
    torch.testing.assert_close(detached, value)
    assert not torch.allclose(slope, grad)
    # with the norms in the gradient, making a vector longer changes nothing
    torch.testing.assert_close((grad * student).sum(), torch.tensor(0.0).double())
    with pytest.raises(TypeError, match='detach_norm must be a bool'):
        PairWiseLoss(detach_norm=1)


@pytest.mark.parametrize('detach_norm', [False, True])
def test_vectors_without_direction_are_zero_and_get_no_gradient(detach_norm):
    student, teacher = random_pair(((1, 3, 4, 4), (1, 3, 4, 4)), torch.float32)
    student = student.detach()
    student[:, :, 0] = 0
    student[:, :, 1] = 1e-9
    assert not unit_vectors(student)[:, :, :2].any()
    loss = PairWiseLoss(pool=None, detach_norm=detach_norm)
    value, grad = value_and_grad(loss, student, teacher)
    assert value.isfinite() and not grad[:, :, :2].any() and grad[:, :, 2:].all()


def test_only_directions_count():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 5, 4, 4)))
    lengths = torch.rand(2, 1, 4, 4, dtype=torch.float64) + 0.1
    expected = pair_wise(student, teacher, pool=None)
    torch.testing.assert_close(pair_wise(student * lengths, teacher, pool=None), expected)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = torch.einsum('dc,nchw->ndhw', rotation, student)
    torch.testing.assert_close(pair_wise(turned, teacher, pool=None), expected)


# --- accuracy --------------------------------------------------------------------------------


def unit_pair(distance, channels, positions, padding=0):
    """Unit vectors in float32 whose directions differ by about ``distance``; post-ReLU-like."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, channels, positions, 1, generator=generator).relu()
    noise = torch.randn(student.shape, generator=generator)
    noise *= distance * student.norm() / noise.norm()
    teacher = torch.cat([student + noise, torch.zeros(1, padding, positions, 1)], dim=1)
    return student.requires_grad_(), teacher


def exact(student, teacher):
    """Value and gradient through the n x n matrices in float64."""
    student = student.detach().double().requires_grad_()
    s, t = unit_vectors(student.flatten(2)), unit_vectors(teacher.double().flatten(2))
    value = (s.mT @ s - t.mT @ t).square().mean()
    value.backward()
    return value.item(), student.grad


@pytest.mark.parametrize('distance', [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(('channels', 'positions'), [(32, 512), (64, 48)])
def test_close_maps_of_equal_width_keep_their_digits(distance, channels, positions):
    student, teacher = unit_pair(distance, channels, positions)
    expected, slope = exact(student, teacher)
    value, grad = value_and_grad(PairWiseLoss(pool=None), student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-3)
    assert (grad - slope).norm() <= 5e-3 * slope.norm()


@pytest.mark.parametrize(('distance', 'rel'), [(1e-1, 1e-4), (1e-2, 1e-2)])
def test_close_maps_of_different_width(distance, rel):
    student, teacher = unit_pair(distance, 32, 512, padding=32)
    expected, slope = exact(student, teacher)
    value, grad = value_and_grad(PairWiseLoss(pool=None), student, teacher)
    assert value.item() == pytest.approx(expected, rel=rel)
    assert (grad - slope).norm() <= 1e-3 * slope.norm()


def test_identical_maps_cost_exactly_nothing():
    for shape in ((2, 8, 9, 9), (2, 99, 3, 3)):
        student, _ = random_pair((shape, shape), torch.float32)
        value, grad = value_and_grad(PairWiseLoss(pool=None), student, student.detach().clone())
        assert value.item() == 0 and not grad.any()


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(('c_s', 'c_t'), [(128, 128), (64, 128)])
def test_every_position_of_a_large_map_fits_in_18_mb(c_s, c_t):
    size = (64, 128)
    student, teacher = random_pair(((1, c_s, *size), (1, c_t, *size)), torch.float32)
    loss = PairWiseLoss(pool=None)
    assert saved_bytes(lambda: loss(student, teacher), student, teacher) == 4 * student.numel()
    with Allocations() as made:
        loss(student, teacher).backward()
    assert made.largest <= 4 * 128 * 64 * 128  # one map; the n x n matrix would take 268 MB
    assert made.peak < 18e6


def test_matrices_of_few_positions_are_built_instead_of_wide_ones():
    student, teacher = random_pair(((1, 512, 2, 4), (1, 1024, 2, 4)), torch.float32)
    with Allocations() as made:
        PairWiseLoss(pool=None)(student, teacher).backward()
    assert made.largest == 4 * 1024 * 8  # one map; a 1024 x 1024 matrix would take 4 MB
