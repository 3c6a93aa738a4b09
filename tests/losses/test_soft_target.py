from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import PixelWiseLoss, SoftTargetLoss
from mmkd_plugin.losses.soft_target import soft_targets


class TestSoftTargetLoss(LossContract):
    name = 'SoftTargetLoss'
    variants = (
        dict(),
        dict(tau=2, standardize=True),
        dict(tau=0.5),
        dict(sigmoid=True),
        dict(tau=1),
        dict(tau=1, sigmoid=True),
    )
    pairs = alike((4, 5), (1, 3), (2, 1), (2, 3, 4, 4), (1, 3, 1, 1))

    @staticmethod
    def reference(student, teacher, tau=4.0, sigmoid=False, standardize=False):
        if standardize:
            student, teacher = standard(student), standard(teacher)
        divergences = []
        for n in range(student.shape[0]):
            # a classifier's logits are those of a map with one position
            s, t = (x[n].reshape(x.shape[1], -1) / tau for x in (student, teacher))
            for i in range(s.shape[1]):
                if sigmoid:
                    divergences.append(yes_or_no(s[:, i], t[:, i]))
                    continue
                q, p = (np.exp(x[:, i]) / np.exp(x[:, i]).sum() for x in (s, t))
                divergences.append(sum(p[c] * np.log(p[c] / q[c]) for c in range(p.size)))
        return tau**2 * sum(divergences) / len(divergences)


def standard(x):
    """Mean 0 and unbiased deviation 1 over the classes; a single class is 0."""
    gap = x - x.mean(1, keepdims=True)
    if x.shape[1] == 1:
        return gap
    return gap / (np.sqrt((gap**2).sum(1, keepdims=True) / (x.shape[1] - 1)) + 1e-7)


def yes_or_no(student, teacher):
    """The sum over classes of the divergence of a yes or no, from logits over tau."""
    total = 0.0
    for s, t in zip(student, teacher):
        for sign in (-1, 1):  # yes, no
            q, p = 1 / (1 + np.exp(sign * s)), 1 / (1 + np.exp(sign * t))
            total += p * np.log(p / q)
    return total


def test_known_value_of_independent_classes():
    logit = np.log(3)  # 3/4; its negative is 1/4
    teacher, student = torch.tensor([[0.0, logit]]), torch.tensor([[logit, -logit]])
    first = np.log(2 / 3) / 2 + np.log(2) / 2  # 1/2 and 1/2 against 3/4 and 1/4
    second = 0.75 * np.log(3) + 0.25 * np.log(1 / 3)  # 3/4 and 1/4 against 1/4 and 3/4
    value = soft_targets(student, teacher, sigmoid=True)
    assert value.item() == pytest.approx(first + second)
    value = soft_targets(2 * student, 2 * teacher, tau=2, sigmoid=True)
    assert value.item() == pytest.approx(4 * (first + second))
    maps = (x[:, :, None, None].expand(3, 2, 4, 5) for x in (student, teacher))
    assert soft_targets(*maps, sigmoid=True).item() == pytest.approx(first + second)


def test_an_independent_class_is_a_softmax_over_it_and_zero():
    student, teacher = random_pair(((4, 5), (4, 5)))
    pairs = (torch.stack([x, torch.zeros_like(x)], 2).flatten(0, 1) for x in (student, teacher))
    expected = 5 * soft_targets(*pairs, tau=3.0)  # a mean over 4 * 5 rows
    torch.testing.assert_close(soft_targets(student, teacher, tau=3.0, sigmoid=True), expected)


def test_gradient_of_independent_classes():
    student, teacher = random_pair(((4, 5), (4, 5)))
    soft_targets(student, teacher, tau=3.0, sigmoid=True).backward()
    gap = (student.detach() / 3).sigmoid() - (teacher / 3).sigmoid()
    torch.testing.assert_close(student.grad, gap * 3 / 4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('tau', [1.0, 0.5, 4.0])
def test_independent_classes_that_are_certain(dtype, tau):
    student = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0, 0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1e4, -1e4, -1e4, 1e4, 1e4, -1e4]], dtype=dtype)
    value, grad = value_and_grad(
        lambda s, t: soft_targets(s, t, tau, sigmoid=True), student, teacher
    )
    size = student.detach()[0, 0].item()  # bfloat16 rounds 1e4
    assert value.item() == pytest.approx(tau**2 * (2 * size / tau + 2 * np.log(2)))
    expected = tau * torch.tensor([[0, 0, 1, -1, -0.5, 0.5]], dtype=dtype)
    assert torch.equal(grad, expected)


def test_independent_classes_close_to_the_teacher_keep_their_digits():
    _, teacher = random_pair(((64, 1000), (64, 1000)))
    teacher = teacher - 4  # as a detector's scores: nearly all are no
    student = teacher + 1e-2 * torch.randn_like(teacher)
    expected = soft_targets(student, teacher, sigmoid=True).item()
    value = soft_targets(student.float(), teacher.float(), sigmoid=True).item()
    assert value == pytest.approx(expected, rel=1e-3)


def test_known_value():
    teacher = torch.tensor([[0.0, 0.0]])  # (1/2, 1/2), whatever tau
    student = 4 * torch.tensor([[3.0, 1.0]]).log()  # (3/4, 1/4) at tau 4
    expected = 4**2 * (np.log(2 / 3) / 2 + np.log(2) / 2)
    assert soft_targets(student, teacher, tau=4).item() == pytest.approx(expected)
    batch = soft_targets(student.repeat(3, 1), teacher.repeat(3, 1), tau=4)  # a mean over images
    assert batch.item() == pytest.approx(expected)


def test_gradient_is_the_gap_of_the_distributions():
    student, teacher = random_pair(((4, 5), (4, 5)))
    soft_targets(student, teacher, tau=3.0).backward()
    gap = (student.detach() / 3).softmax(1) - (teacher / 3).softmax(1)
    torch.testing.assert_close(student.grad, gap * 3 / 4)


def test_the_level_of_the_logits_does_not_matter():
    student, teacher = random_pair(((4, 5), (4, 5)))
    levels = torch.randn(4, 1, dtype=torch.float64)
    torch.testing.assert_close(
        soft_targets(student + levels, teacher - levels), soft_targets(student, teacher)
    )


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_on_maps_it_is_the_pixel_wise_loss(tau, sigmoid):
    student, teacher = random_pair(((2, 3, 4, 5), (2, 3, 4, 5)))
    options = dict(tau=tau, sigmoid=sigmoid)
    values = [kind(**options)(student, teacher) for kind in (SoftTargetLoss, PixelWiseLoss)]
    assert torch.equal(*values)


@pytest.mark.parametrize('kind', [SoftTargetLoss, PixelWiseLoss])
def test_standardised_logits(kind):
    student, teacher = random_pair(((2, 5, 4, 3), (2, 5, 4, 3)))
    loss = kind(tau=2, standardize=True)
    expected = TestSoftTargetLoss.reference(
        student.detach().numpy(), teacher.numpy(), tau=2, standardize=True
    )
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(loss(3 * student + 1, teacher), loss(student, teacher))
    assert not loss.compares_probabilities and kind().compares_probabilities
    assert 'two logits' in loss.teaches_nothing(2) and kind().teaches_nothing(2) is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_equal_logits_get_no_gradient_once_standardised(dtype):
    student, teacher = random_pair(((4, 5), (4, 5)), dtype)
    student = student.detach()
    student[1] = 0.1
    value, grad = value_and_grad(SoftTargetLoss(standardize=True), student, teacher)
    assert value.isfinite() and grad.isfinite().all() and not grad[1].any() and grad[0].any()


def test_standardised_positions_with_labels():
    student, teacher = random_pair(((2, 5, 4, 3), (2, 5, 4, 3)))
    labels = torch.zeros(2, 4, 3, dtype=torch.int64)
    labels[:, 1:] = 255
    loss = PixelWiseLoss(tau=2, standardize=True, ignore_index=255)
    expected = PixelWiseLoss(tau=2, standardize=True)(student[:, :, :1], teacher[:, :, :1])
    torch.testing.assert_close(loss(student, teacher, labels), expected)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student)


@pytest.mark.parametrize('kind', [SoftTargetLoss, PixelWiseLoss])
def test_standardize_is_checked(kind):
    with pytest.raises(TypeError, match='standardize must be True or False, got 1'):
        kind(standardize=1)
    with pytest.raises(ValueError, match='standardize=True must not be used with sigmoid=True'):
        kind(standardize=True, sigmoid=True)


def test_default_temperatures():
    assert SoftTargetLoss().tau == 4 and PixelWiseLoss().tau == 1


@pytest.mark.parametrize('kind', [SoftTargetLoss, PixelWiseLoss])
def test_independent_scores_are_no_probabilities_of_classes(kind):
    assert kind().compares_probabilities is True
    assert kind(sigmoid=True).compares_probabilities is False


@pytest.mark.parametrize('kind', [SoftTargetLoss, PixelWiseLoss])
@pytest.mark.parametrize('value', [1, 'True', None])
def test_sigmoid_is_checked(kind, value):
    assert kind().sigmoid is False
    with pytest.raises(TypeError, match=f'sigmoid must be True or False, got {value!r}'):
        kind(sigmoid=value)


@pytest.mark.parametrize(('tau', 'error'), [(0, ValueError), (-2, ValueError), ('1', TypeError)])
def test_tau_is_checked(tau, error):
    with pytest.raises(error, match='tau must be'):
        SoftTargetLoss(tau=tau)
