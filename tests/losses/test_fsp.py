from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LOW_PRECISION, LossContract, random_pair
from torch import Tensor

from mmkd_plugin.losses import FSPLoss
from mmkd_plugin.losses.fsp import flow_matrix


def second_of(x):
    """Another map made of one, a tensor or an array: other channels, another size."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        return x
    return 2 * x[:, [0, -1, 0, 0], ::2, 1:] if x.shape[3] > 1 else 2 * x[:, [0, -1, 0, 0], ::2]


def windows(old, new):
    return [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]


def flow(first, second, pool):
    """The FSP matrix of one sample, in plain loops."""
    height, width = map(min, first.shape[1:], second.shape[1:])
    reduce = dict(max=np.max, avg=np.mean)[pool]

    def pooled(channel):
        return np.array(
            [
                reduce(channel[top:bottom, left:right])
                for top, bottom in windows(channel.shape[0], height)
                for left, right in windows(channel.shape[1], width)
            ]
        )

    matrix = np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            matrix[i, j] = (pooled(a) * pooled(b)).sum() / (height * width)
    return matrix


class TestFSPLoss(LossContract):
    name = 'FSPLoss'
    variants = (dict(), dict(pool='avg'), dict(squared=False), dict(pool='avg', squared=False))
    pairs = (
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((1, 2, 5, 3), (1, 2, 5, 3)),
        ((2, 3, 7, 5), (2, 3, 4, 6)),  # sizes differ
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 1, 1, 6), (1, 1, 1, 6)),
    )
    same_size = False
    has_fast_form = False
    saved_maps = 2.5  # a map in float32, the pooled one, and where its maxima were
    float16_at_1e4 = False  # the loss is of fourth order in the maps

    @staticmethod
    def reference(student, teacher, pool='max', squared=True):
        gaps = [
            flow(s1, s2, pool) - flow(t1, t2, pool)
            for s1, s2, t1, t2 in zip(student, second_of(student), teacher, second_of(teacher))
        ]
        if squared:
            return float(np.mean(np.square(gaps)))
        return sum(np.sqrt((gap[:, j] ** 2).sum()) for gap in gaps for j in range(4)) / len(gaps)

    def call(self, loss, student, teacher):
        """Two maps are compared where the common tests give one; sequences are left as they are."""
        if isinstance(student, Tensor) and isinstance(teacher, Tensor):
            return loss((student, second_of(student)), (teacher, second_of(teacher)))
        return loss(student, teacher)

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_low_precision_inputs_are_compared_in_float32(self, dtype):
        """With two maps of their own: what both give to one map would be added up in half."""
        for loss in self.losses:
            for shapes in self.pairs:
                first, second = (random_pair(shapes, dtype, 2.0, seed) for seed in (0, 1))
                students, teachers = zip(first, second)
                value = loss(students, teachers)
                grads = torch.autograd.grad(value, students)
                exact = [x.detach().double().requires_grad_() for x in students]
                expected = loss(exact, [x.double() for x in teachers])
                assert value.dtype == torch.float32
                assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
                for grad, slope in zip(grads, torch.autograd.grad(expected, exact)):
                    assert grad.dtype == dtype
                    torch.testing.assert_close(grad.double(), slope, rtol=1e-2, atol=1e-6)

    @pytest.mark.parametrize('kind', [list, tuple])
    def test_sequence_is_the_sum_over_its_pairs(self, kind):
        """The pairs are consecutive maps of one model."""
        channels, sizes = (3, 2, 4, 1), ((8, 6), (4, 7), (4, 4), (1, 2))
        for loss in self.losses:
            students, teachers = zip(
                *(random_pair(((2, c, *size),) * 2) for c, size in zip(channels, sizes))
            )
            value = loss(kind(students), kind(teachers))
            steps = [slice(i, i + 2) for i in range(3)]
            parts = [loss(students[step], teachers[step]) for step in steps]
            assert all(part > 0 for part in parts)
            torch.testing.assert_close(value, sum(parts))
            grads = torch.autograd.grad(value, students)
            for grad, expected in zip(grads, torch.autograd.grad(sum(parts), students)):
                torch.testing.assert_close(grad, expected)

    def test_loss_weight_for_each_map(self):
        """One weight for each pair of consecutive maps: one less than there are maps."""
        for options in self.variants:
            students, teachers = zip(*(random_pair(((2, c, 4, 4),) * 2) for c in (2, 3, 4)))
            value = self.build(**options, loss_weight=[1.0, 4.0])(students, teachers)
            plain = self.build(**options)
            expected = plain(students[:2], teachers[:2]) + 4 * plain(students[1:], teachers[1:])
            torch.testing.assert_close(value, expected)
            loss = self.build(**options, loss_weight=[1.0, 2.0, 3.0])
            with pytest.raises(ValueError, match='loss_weight has 3 entries for 2 comparisons'):
                loss(students, teachers)


def test_known_value():
    student = [torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[2.0, -1.0]]]])]
    teacher = [torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)]
    # (1*2 + 3*(-1)) / 2 = -0.5 against 1
    assert FSPLoss()(student, teacher).item() == pytest.approx(1.5**2)


@pytest.mark.parametrize(('pool', 'expected'), [('max', 7 * 5), ('avg', 4 * 5)])
def test_the_larger_map_is_pooled_whichever_it_is(pool, expected):
    large, small = torch.tensor([[[[1.0, 7.0]]]]), torch.tensor([[[[5.0]]]])
    assert flow_matrix(large, small, pool).item() == expected
    assert flow_matrix(small, large, pool).item() == expected


def test_maps_of_one_size_are_not_pooled():
    student, teacher = random_pair(((2, 3, 5, 4), (2, 6, 5, 4)))
    torch.testing.assert_close(
        flow_matrix(student, teacher, 'max'), flow_matrix(student, teacher, 'avg')
    )
    expected = torch.einsum('nihw,njhw->nij', student, teacher) / 20
    torch.testing.assert_close(flow_matrix(student, teacher), expected)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: [x]])
def test_one_map_alone_is_refused(wrap):
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match='one map alone') as error:
        FSPLoss()(wrap(x), wrap(x))
    assert str(error.value).endswith(
        "student (2, 3, 4, 4); tap two or more, such as tap=['backbone.layer1', 'backbone.layer2']"
    )


def test_every_map_is_checked():
    a, b = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r'channel counts differ: student \(2, 5, 4, 4\)'):
        FSPLoss()([a, b], [a, a])
    with pytest.raises(ValueError, match=r'batch sizes of the two maps differ: first \(2, 3, 4'):
        FSPLoss()([a, b[:1]], [a, b[:1]])
    with pytest.raises(ValueError, match=r'batch sizes differ: student \(1, 5, 4, 4\)'):
        FSPLoss()([a, b[:1]], [a, b])


@pytest.mark.parametrize('pool', ['mean', None, True, 2])
def test_pool_is_checked(pool):
    with pytest.raises(ValueError, match=r"pool must be one of 'max', 'avg', got"):
        FSPLoss(pool=pool)
