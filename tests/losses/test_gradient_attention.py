from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_contract import LossContract, random_pair, value_and_grad
from torch import nn

from mmkd_plugin.losses import GradientAttentionLoss


class TestGradientAttentionLoss(LossContract):
    name = 'GradientAttentionLoss'
    variants = (dict(),)
    pairs = (
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((1, 2, 5, 3), (1, 2, 5, 3)),
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 1, 1, 6), (1, 1, 1, 6)),
        ((3, 5), (3, 5)),
    )

    @staticmethod
    def reference(student, teacher):
        total = 0.0
        for s, t in zip(student.flat, teacher.flat):
            total += (s - t) ** 2
        return math.sqrt(total)


def test_known_value():
    student = torch.tensor([3.0, 0.0, 1.0, 1.0]).view(2, 1, 1, 2)
    teacher = torch.tensor([0.0, 4.0, 1.0, 1.0]).view(2, 1, 1, 2)
    assert GradientAttentionLoss()(student, teacher).item() == 5


def test_the_distiller_is_told_to_hand_in_gradients():
    assert GradientAttentionLoss.compares == 'gradients'


@pytest.mark.parametrize('exponent', [-42, -30, -20, -8, 0, 8, 20, 30])
def test_gradients_of_any_size(exponent):
    student, teacher = random_pair(((2, 3, 8, 8),) * 2)
    scale = 10.0**exponent
    student, teacher = (x.detach() * scale for x in (student, teacher))
    value, grad = value_and_grad(GradientAttentionLoss(), student.float(), teacher.float())
    expected, slope = value_and_grad(GradientAttentionLoss(), student, teacher)
    rel = 1e-6 if exponent > -38 else 1e-2  # fewer digits below 1e-38, nothing else
    assert value.item() == pytest.approx(expected.item(), rel=rel)
    assert (grad - slope).norm() <= rel * slope.norm() and slope.norm() == pytest.approx(1)


@pytest.mark.parametrize('shape', [(1, 64, 256, 64), (1000, 1000)])
def test_a_million_small_entries_keep_their_digits(shape):
    student, teacher = random_pair((shape, shape), scale=1e-8)
    value = GradientAttentionLoss()(student.float(), teacher.float())
    expected = GradientAttentionLoss()(student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_entry_that_differs():
    student = torch.zeros(1, 2, 3, 3)
    student[0, 1, 2, 2] = -1e-30
    value, grad = value_and_grad(GradientAttentionLoss(), student, torch.zeros(1, 2, 3, 3))
    assert value.item() == pytest.approx(1e-30)
    assert grad[0, 1, 2, 2] == -1 and grad.abs().sum() == 1


# --- double backward -------------------------------------------------------------------------


def small_model(seed: int, width: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # its output is the tap
        nn.BatchNorm2d(4),
        nn.Softplus(),
        nn.Conv2d(4, width, 3, stride=2),
        nn.Tanh(),
        nn.Conv2d(width, 5, 1),
    ).double()


def task_gradient(model, images, labels, **options):
    tap = model[0](images)
    loss = F.cross_entropy(model[1:](tap), labels)
    (gradient,) = torch.autograd.grad(loss, tap, **options)
    return gradient


@pytest.fixture
def case():
    """A student, and a function that gives its loss from the images to the number."""
    student, teacher = small_model(0, 6), small_model(1, 8)
    images = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 3))
    target = task_gradient(teacher, images, labels)

    def compare(**options):
        return GradientAttentionLoss(loss_weight=3)(
            task_gradient(student, images, labels, **options), target
        )

    return student, compare


def test_double_backward_agrees_with_finite_differences(case):
    student, compare = case
    compare(create_graph=True).backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert gradients.keys() == dict(student.named_parameters()).keys()
    # the batch norm takes away what the first bias adds; all others count
    assert [name for name, g in gradients.items() if g.abs().max() < 1e-12] == ['0.bias']
    for name, parameter in student.named_parameters():
        for index in np.ndindex(*parameter.shape):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[index] += step
                values.append(compare().item())
                with torch.no_grad():
                    parameter[index] -= step
            slope = (values[0] - values[1]) / 2e-5
            assert gradients[name][index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_a_student_equal_to_its_teacher_gets_no_gradient():
    student = small_model(0, 6)
    images = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 3))
    gradient = task_gradient(student, images, labels, create_graph=True)
    loss = GradientAttentionLoss()(gradient, gradient.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())
