from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled import LabelledContract, labelled_rows, random_labels, softmax
from loss_contract import random_pair, value_and_grad
from test_soft_target import standard

from mmkd_plugin.losses import DecoupledLoss, SoftTargetLoss
from mmkd_plugin.losses.decoupled import decoupled


def by_hand(student, teacher, labels, alpha=1.0, beta=8.0, tau=4.0, standardize=False):
    if standardize:
        student, teacher = standard(student), standard(teacher)
    total, rows = 0.0, [labelled_rows(x, labels) for x in (student, teacher)]
    for (s, y), (t, _) in zip(*rows):
        p, r = softmax(s / tau), softmax(t / tau)
        q, u = (softmax(np.delete(x / tau, y)) for x in (s, t))
        total += alpha * r[y] * np.log(r[y] / p[y])
        total += alpha * (1 - r[y]) * np.log((1 - r[y]) / (1 - p[y]))
        total += beta * sum(u * np.log(u / q))
    return tau**2 * total / max(len(rows[0]), 1)


class TestDecoupledLoss(LabelledContract):
    name = 'DecoupledLoss'
    variants = (
        dict(),
        dict(alpha=2, beta=0.5, tau=1),
        dict(tau=2, standardize=True),
        dict(alpha=0, beta=1),
    )

    @staticmethod
    def reference(student, teacher, **options):
        return by_hand(student, teacher, random_labels(len(student)).numpy(), **options)


def test_logits_of_images():
    student, teacher = random_pair(((4, 5), (4, 5)))
    labels = torch.tensor([0, 4, 255, 2])
    value = DecoupledLoss()(student, teacher, labels)
    expected = by_hand(student.detach().numpy(), teacher.numpy(), labels.numpy())
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    assert not student.grad[2].any() and student.grad[0].any()


def test_with_the_factor_of_the_teacher_it_is_the_usual_divergence():
    """KL = KL of b + (1 - p_y) KL of q: the paper's equation 7."""
    student, teacher = random_pair(((1, 5), (1, 5)))
    beta = 1 - (teacher / 4).softmax(1)[0, 3].item()
    value = DecoupledLoss(beta=beta)(student, teacher, torch.tensor([3]))
    torch.testing.assert_close(value, SoftTargetLoss(tau=4)(student, teacher))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_certain_predictions_are_exact(dtype):
    teacher = torch.tensor([[1e4, 0, -1e4]], dtype=dtype)
    for logits in ([1e4, 0, -1e4], [-1e4, 0, 1e4], [0, 0, 0]):
        student = torch.tensor([logits], dtype=dtype)
        value, grad = value_and_grad(
            lambda s, t: decoupled(s, t, torch.tensor([0]), beta=1.0, tau=1.0), student, teacher
        )
        gap = {1e4: 0, -1e4: 3e4, 0: np.log(3) + np.log(2)}[logits[0]]
        assert value.item() == pytest.approx(gap, rel=1e-5) and grad.isfinite().all()


@pytest.mark.parametrize('label', [255, -1, 7])
def test_rows_without_a_class_are_left_out(label):
    student, teacher = random_pair(((2, 5), (2, 5)))
    value = DecoupledLoss()(student, teacher, torch.tensor([1, label]))
    expected = DecoupledLoss()(student[:1], teacher[:1], torch.tensor([1]))
    torch.testing.assert_close(value, expected)
    call = lambda s, t: DecoupledLoss()(s, t, torch.tensor([label, label]))  # noqa: E731
    value, grad = value_and_grad(call, student, teacher)
    assert value.item() == 0 and not grad.any()


def test_a_single_class_costs_nothing():
    assert 'a single class' in DecoupledLoss().teaches_nothing(1)
    student, teacher = random_pair(((2, 1, 3, 3), (2, 1, 3, 3)))
    value, grad = value_and_grad(
        lambda s, t: DecoupledLoss()(s, t, random_labels(2)), student, teacher
    )
    assert value.item() == 0 and not grad.any()


def test_labels_are_checked():
    student, teacher = random_pair(((2, 5), (2, 5)))
    assert DecoupledLoss().needs == ('labels',)
    with pytest.raises(ValueError, match=r'labels do not fit the logits.*one label per image'):
        DecoupledLoss()(student, teacher, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match='labels do not fit'):
        DecoupledLoss()(student, teacher, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match='labels must be integers'):
        DecoupledLoss()(student, teacher, torch.zeros(2))
    with pytest.raises(TypeError, match='labels must be a tensor'):
        DecoupledLoss()(student, teacher, None)


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(alpha=-1), ValueError, 'alpha cannot be negative'),
        (dict(beta='8'), TypeError, 'beta must be a number'),
        (dict(alpha=0, beta=0), ValueError, 'alpha and beta are both 0'),
        (dict(tau=0), ValueError, 'tau must be above 0'),
        (dict(standardize=1), TypeError, 'standardize must be True or False'),
        (dict(ignore_index=None), TypeError, 'ignore_index must be an int'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        DecoupledLoss(**options)
