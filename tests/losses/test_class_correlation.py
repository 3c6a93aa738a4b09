from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import ClassCorrelationLoss
from mmkd_plugin.losses.class_correlation import class_correlation


def rho(a, b):
    a, b = a - sum(a) / len(a), b - sum(b) / len(b)
    return (a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8)


def rows_of(x, tau, kept=None):
    """The distribution of each image or position, one a row."""
    rows = [x[(n, slice(None), *p)] for n in range(len(x)) for p in np.ndindex(x.shape[2:])]
    rows = [row for row, keep in zip(rows, kept) if keep] if kept is not None else rows
    return np.array([np.exp(row / tau) / np.exp(row / tau).sum() for row in rows])


def by_hand(student, teacher, tau=1.0, inter=1.0, intra=1.0, kept=None):
    s, t = (rows_of(x, tau, kept) for x in (student, teacher))
    of_rows = np.mean([rho(a, b) for a, b in zip(s, t)])
    of_classes = np.mean([rho(a, b) for a, b in zip(s.T, t.T)])
    return tau**2 * (inter * (1 - of_rows) + intra * (1 - of_classes))


class TestClassCorrelationLoss(LossContract):
    name = 'ClassCorrelationLoss'
    variants = (dict(), dict(tau=4), dict(inter=2, intra=0.5), dict(tau=2, intra=0))
    pairs = alike((2, 3, 4, 4), (1, 4, 5, 3), (2, 3, 1, 1), (4, 5), (1, 2, 1, 6))
    identical_is_zero = False  # but for the 1e-8 in the denominator, see below
    zeros_cost_nothing = False  # nothing correlates with a constant

    @staticmethod
    def reference(student, teacher, **options):
        return by_hand(student, teacher, **options)


SHAPE = (2, 3, 4, 5)


@pytest.fixture
def labels():
    return torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_ignored_positions_leave_rows_and_classes(labels, tau):
    student, teacher = random_pair((SHAPE, SHAPE))
    loss = ClassCorrelationLoss(tau=tau, ignore_index=2)
    kept = (labels != 2).numpy().ravel()
    expected = by_hand(student.detach().numpy(), teacher.numpy(), tau, kept=kept)
    value = loss(student, teacher, labels)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    ignored = (labels == 2)[:, None].expand(SHAPE)
    assert ignored.any() and not student.grad[ignored].any() and student.grad[~ignored].all()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student)


def test_nothing_ignored_is_the_plain_loss_and_everything_costs_nothing(labels):
    student, teacher = random_pair((SHAPE, SHAPE))
    value = ClassCorrelationLoss(ignore_index=255)(student, teacher, labels)
    torch.testing.assert_close(value, ClassCorrelationLoss()(student, teacher))
    loss = ClassCorrelationLoss(ignore_index=1)
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels * 0 + 1), student, teacher)
    assert value.item() == 0 and not grad.any()


def test_labels_are_asked_for():
    assert ClassCorrelationLoss(ignore_index=0).needs == ('labels',)
    assert ClassCorrelationLoss().needs == ()
    with pytest.raises(ValueError, match='ignore_index=0 needs `labels`'):
        ClassCorrelationLoss(ignore_index=0)(*random_pair((SHAPE, SHAPE)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_what_is_constant_has_no_correlation_and_no_gradient(dtype):
    student, teacher = random_pair(((4, 3), (4, 3)), dtype)
    student = student.detach()
    student[1] = 0.3  # equal logits
    value, grad = value_and_grad(lambda s, t: class_correlation(s, t, intra=0), student, teacher)
    assert value.isfinite() and not grad[1].any() and grad[0].any()
    rest = by_hand(
        student[[0, 2, 3]].double().numpy(), teacher[[0, 2, 3]].double().numpy(), intra=0
    )
    assert value.item() == pytest.approx((3 * rest + 1) / 4, rel=1e-4)
    student[:] = student[0]  # the same in each row: no class varies
    value, grad = value_and_grad(lambda s, t: class_correlation(s, t, inter=0), student, teacher)
    assert value.item() == 1 and not grad.any()


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_the_teacher_itself_costs_nothing_but_the_1e_8(tau):
    teacher = 3 * torch.eye(3, dtype=torch.float64) + 0.1 * torch.arange(3)
    value, grad = value_and_grad(ClassCorrelationLoss(tau=tau), teacher, teacher)
    assert 0 < value.item() < 1e-5 and grad.abs().max() < 1e-5


def test_a_single_class_teaches_nothing():
    assert ClassCorrelationLoss().teaches_nothing(2) is None
    assert 'a single class' in ClassCorrelationLoss().teaches_nothing(1)
    value, grad = value_and_grad(ClassCorrelationLoss(), *random_pair(((2, 1, 4, 4),) * 2))
    assert value.item() == 2 and not grad.any()


def test_a_single_row_has_the_part_of_the_rows_alone():
    student, teacher = random_pair(((1, 5), (1, 5)))
    expected = by_hand(student.detach().numpy(), teacher.numpy(), intra=0) + 1
    assert class_correlation(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(tau=0), ValueError, 'tau must be above 0'),
        (dict(inter=-1), ValueError, 'inter cannot be negative'),
        (dict(intra='1'), TypeError, 'intra must be a number'),
        (dict(inter=0, intra=0), ValueError, 'inter and intra are both 0'),
        (dict(ignore_index=255.0), TypeError, 'ignore_index must be an int or None'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        ClassCorrelationLoss(**options)
