from __future__ import annotations

import numpy as np
import pytest
import torch
from allocations import Allocations
from loss_contract import LossContract, random_pair, value_and_grad
from memory import saved_bytes

from mmkd_plugin.losses import LocalSimilarityLoss
from mmkd_plugin.losses.local_similarity import local_similarity, neighbour_similarity

NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
SIMILARITIES = ('distance', 'cosine')


class TestLocalSimilarityLoss(LossContract):
    name = 'LocalSimilarityLoss'
    variants = (dict(), dict(similarity='cosine'))
    pairs = (
        ((2, 3, 5, 4), (2, 5, 5, 4)),
        ((1, 2, 3, 7), (1, 1, 3, 7)),
        ((2, 4, 3, 3), (2, 4, 3, 3)),  # one interior position
        ((2, 3, 2, 5), (2, 2, 2, 5)),  # none
        ((2, 3, 1, 1), (2, 3, 1, 1)),
    )
    same_channels = False
    float16_at_1e4 = False  # of 'distance'; for 'cosine' see below

    @staticmethod
    def reference(student, teacher, similarity='distance'):
        def cosine(a, b):
            return (a @ b) / np.sqrt((a @ a) * (b @ b))

        total, count = 0.0, 0
        for n in range(student.shape[0]):
            for y in range(1, student.shape[2] - 1):
                for x in range(1, student.shape[3] - 1):
                    measured = []
                    for sample in (student[n], teacher[n]):
                        here = sample[:, y, x]
                        around = [sample[:, y + dy, x + dx] for dy, dx in NEIGHBOURS]
                        if similarity == 'distance':
                            measured.append([sum(((here - r) ** 2).sum() for r in around)])
                        else:
                            measured.append([cosine(here, r) for r in around])
                    gaps = [(s - t) ** 2 for s, t in zip(*measured)]
                    total, count = total + sum(gaps), count + len(gaps)
        return total / max(count, 1)


# --- the formula -----------------------------------------------------------------------------


def test_known_distance():
    student = torch.zeros(1, 1, 3, 4)
    student[0, 0, 1, 1] = 2  # m: 8 * 4 there, 4 at its interior neighbour on the right
    loss = local_similarity(student, torch.zeros(1, 7, 3, 4))
    assert loss.item() == (32**2 + 4**2) / 2


def test_known_cosine():
    student = torch.zeros(1, 2, 3, 3)
    student[0, 0] = 1
    student[0, :, 1, 1] = torch.tensor([0.0, 3.0])  # orthogonal to all its neighbours
    student[0, :, 0, 0] = torch.tensor([0.0, 5.0])  # but one
    teacher = torch.full((1, 1, 3, 3), 0.5)  # cosine 1 everywhere
    loss = local_similarity(student, teacher, 'cosine')
    assert loss.item() == pytest.approx(7 / 8)


def test_each_neighbour_has_a_map_of_its_own():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    unit = x / x.norm(dim=1, keepdim=True)
    expected = [
        (unit[:, :, 1:3, 1:5] * unit[:, :, 1 + dy : 3 + dy, 1 + dx : 5 + dx]).sum(1)
        for dy, dx in NEIGHBOURS
    ]
    maps = neighbour_similarity(x, 'cosine')
    assert maps.shape == (8, 2, 2, 4)
    for wanted in expected:
        assert any(torch.allclose(wanted, found) for found in maps)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_turned_and_mirrored_maps_cost_the_same(similarity):
    student, teacher = random_pair(((2, 3, 5, 6), (2, 4, 5, 6)))
    expected = local_similarity(student, teacher, similarity)
    for change in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT):
        turned = local_similarity(change(student), change(teacher), similarity)
        torch.testing.assert_close(turned, expected)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotated = torch.einsum('dc,nchw->ndhw', rotation, student)
    torch.testing.assert_close(local_similarity(rotated, teacher, similarity), expected)


def test_distances_do_not_depend_on_the_level_and_grow_with_the_scale():
    student, teacher = random_pair(((2, 3, 5, 6), (2, 4, 5, 6)))
    expected = local_similarity(student, teacher)
    level = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(local_similarity(student + level, teacher), expected)
    torch.testing.assert_close(local_similarity(student * 3, teacher * 3), expected * 3**4)


def test_cosines_do_not_depend_on_lengths():
    student, teacher = random_pair(((2, 3, 5, 6), (2, 4, 5, 6)))
    lengths = torch.rand(2, 1, 5, 6, dtype=torch.float64) + 0.1
    torch.testing.assert_close(
        local_similarity(student * lengths, teacher, 'cosine'),
        local_similarity(student, teacher, 'cosine'),
    )


# --- what has no neighbours, and what has no direction ----------------------------------------


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (2, 9), (9, 2), (1, 3)])
def test_maps_without_interior_cost_nothing(size, similarity):
    student, teacher = random_pair(((2, 3, *size), (2, 4, *size)))
    with torch.no_grad():
        student[0, 0, 0, 0] = torch.inf
    value, grad = value_and_grad(LocalSimilarityLoss(similarity), student, teacher)
    assert value.item() == 0 and grad.shape == student.shape and not grad.any()


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_maps_without_interior_add_nothing_to_a_sequence(similarity):
    (s1, t1), (s2, t2) = (random_pair(((2, 3, *size),) * 2) for size in ((4, 4), (2, 2)))
    loss = LocalSimilarityLoss(similarity)
    assert loss([s1, s2], [t1, t2]).item() == loss(s1, t1).item() > 0


def test_vectors_without_direction_have_cosine_0_and_get_no_gradient():
    student, teacher = random_pair(((1, 3, 5, 5), (1, 3, 5, 5)), torch.float32)
    student = student.detach()
    student[:, :, 2, 2] = 0
    student[:, :, 3, 2] = 1e-9
    maps = neighbour_similarity(student, 'cosine')
    assert not maps[:, :, 1:3, 1].any()
    assert (maps == 0).sum() == 2 * 8 + 7 + 4  # and as a neighbour of others: of 7 and of 4
    value, grad = value_and_grad(LocalSimilarityLoss('cosine'), student, teacher)
    assert value.isfinite() and grad.abs().max() < 10
    assert not grad[:, :, 2:4, 2].any() and grad[:, :, :2].all()


# --- precision and memory ---------------------------------------------------------------------


def test_float16_cosines_at_1e4_are_finite():
    student, teacher = random_pair(((2, 8, 6, 6), (2, 9, 6, 6)), torch.float16, scale=1e4)
    value, grad = value_and_grad(LocalSimilarityLoss('cosine'), student, teacher)
    assert value.isfinite() and grad.isfinite().all() and grad.any()


def test_small_differences_on_a_high_level_keep_their_digits():
    student, teacher = random_pair(((2, 16, 8, 8), (2, 24, 8, 8)), torch.float32)
    student, teacher = (100 + x.detach() for x in (student, teacher))
    expected, slope = value_and_grad(local_similarity, student.double(), teacher.double())
    value, grad = value_and_grad(local_similarity, student, teacher)
    # expanded squares would subtract numbers of 1e5 to get distances of 10
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (grad - slope).norm() <= 1e-5 * slope.norm()


@pytest.mark.parametrize(
    ('similarity', 'distance', 'rel'),
    [
        ('distance', 1e-2, 1e-4),
        ('distance', 1e-4, 1e-2),
        ('cosine', 1e-2, 1e-3),
        ('cosine', 1e-3, 1e-2),
    ],
)
def test_close_maps_keep_their_digits(similarity, distance, rel):
    student, noise = random_pair(((2, 32, 16, 16), (2, 32, 16, 16)), torch.float32)
    student = torch.nn.functional.avg_pool2d(student.detach(), 3)  # neighbours alike
    teacher = student + distance * noise[:, :, :5, :5]
    compare = LocalSimilarityLoss(similarity)
    expected, slope = value_and_grad(compare, student.double(), teacher.double())
    value, grad = value_and_grad(compare, student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=rel)
    assert (grad - slope).norm() <= rel * slope.norm()


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_few_copies_of_the_maps(similarity):
    shape = (2, 128, 64, 64)
    size = 4 * 2 * 128 * 64 * 64
    student, teacher = random_pair((shape, shape), torch.float32)
    loss = LocalSimilarityLoss(similarity)
    assert saved_bytes(lambda: loss(student, teacher), student, teacher) == size  # the gradient
    with Allocations() as made:
        loss(student, teacher).backward()
    assert made.largest == size and made.peak <= 2.1 * size


@pytest.mark.parametrize('similarity', ['euclidean', None, 2, ''])
def test_similarity_is_checked(similarity):
    with pytest.raises(ValueError, match="similarity must be one of 'distance', 'cosine'") as error:
        LocalSimilarityLoss(similarity)
    assert repr(similarity) in str(error.value)
