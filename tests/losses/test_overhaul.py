from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import OverhaulLoss
from mmkd_plugin.losses.overhaul import margin_from_norm, overhaul


def margin_of(channels):
    """A margin that differs from channel to channel."""
    return -0.2 - 0.3 * torch.arange(channels, dtype=torch.float64)


def margins_of(teacher):
    if isinstance(teacher, torch.Tensor):
        return margin_of(teacher.shape[1])
    return [margin_of(x.shape[1] if isinstance(x, torch.Tensor) else 1) for x in teacher]


class TestOverhaulLoss(LossContract):
    name = 'OverhaulLoss'
    variants = (dict(),)
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6))
    float16_at_1e4 = False  # 2 * 4e4 / N

    def call(self, loss, student, teacher):
        return loss(student, teacher, margins_of(teacher))

    @staticmethod
    def reference(student, teacher):
        margin, total = margin_of(student.shape[1]).numpy(), 0.0
        for n, c, y, x in np.ndindex(student.shape):
            s, t = student[n, c, y, x], max(teacher[n, c, y, x], margin[c])
            if not s <= t <= 0:
                total += (s - t) ** 2
        return total / len(student)

    def test_gradient_in_plain_loops(self):
        for shapes in self.pairs:
            student, teacher = random_pair(shapes)
            _, grad = self.value_and_grad(OverhaulLoss(), student, teacher)
            margin = margin_of(student.shape[1])
            for index in np.ndindex(student.shape):
                s, t = student[index].item(), max(teacher[index], margin[index[1]]).item()
                expected = 0 if s <= t <= 0 else 2 * (s - t) / len(student)
                assert grad[index].item() == pytest.approx(expected, rel=1e-12)

    def test_needs_a_margin(self):
        assert OverhaulLoss().needs == ('margin',)
        with pytest.raises(TypeError, match='margin'):
            OverhaulLoss()(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3))


def test_known_value_and_gradient_at_the_edges():
    # with a margin of -1: T, S, what it costs, the slope of that
    cases = [
        (2.0, 3.0, 1, 2),
        (2.0, 1.0, 1, -2),  # T' > 0: both sides pay
        (2.0, -1.0, 9, -6),
        (0.0, -1.0, 0, 0),  # T' = 0 counts as cut off
        (0.0, 0.0, 0, 0),
        (0.0, 1.0, 1, 2),
        (-0.5, -0.5, 0, 0),
        (-0.5, -9.0, 0, 0),
        (-0.5, 0.5, 1, 2),
        (-1.0, 0.0, 1, 2),
        (-7.0, -1.0, 0, 0),  # raised to the margin
        (-7.0, -0.5, 0.25, 1),
        (-7.0, 1.0, 4, 4),
        (-7.0, -6.0, 0, 0),
        (-math.inf, 0.0, 1, 2),
    ]
    teacher, student, cost, slope = (torch.tensor(column) for column in zip(*cases))
    student = student.view(1, 1, 3, 5).repeat(2, 1, 1, 1)
    teacher = teacher.view(1, 1, 3, 5).repeat(2, 1, 1, 1)
    margin = torch.tensor([-1.0])
    value, grad = value_and_grad(lambda s, t: overhaul(s, t, margin), student, teacher)
    assert value.item() == cost.sum().item()  # twice the sum, divided by N = 2
    assert torch.equal(grad[0].flatten(), slope / 2) and torch.equal(grad[1], grad[0])


def test_nan_in_the_student_shows():
    student, teacher = torch.full((1, 1, 2, 2), math.nan), -torch.ones(1, 1, 2, 2)
    assert OverhaulLoss()(student, teacher, torch.tensor([-2.0])).isnan()


# --- the margin that forward takes -----------------------------------------------------------


def test_forms_of_the_margin():
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    margin = margin_of(3).requires_grad_()
    expected = OverhaulLoss()(student, teacher, margin)
    expected.backward()
    assert margin.grad is None
    torch.testing.assert_close(OverhaulLoss()(student, teacher, margin.view(1, 3, 1, 1)), expected)
    torch.testing.assert_close(OverhaulLoss()(student, teacher, [margin]), expected)
    torch.testing.assert_close(OverhaulLoss()([student], (teacher,), margin), expected)
    value = OverhaulLoss()(student.float(), teacher.float(), margin)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)


def test_each_map_has_its_margin():
    students, teachers = zip(*(random_pair(((2, c, 4, 4), (2, c, 4, 4))) for c in (3, 3, 2)))
    margins = [margin_of(3), 3 * margin_of(3), margin_of(2)]
    parts = [OverhaulLoss()(*triple) for triple in zip(students, teachers, margins)]
    loss = OverhaulLoss(loss_weight=[0.25, 0.5, 1])
    torch.testing.assert_close(
        loss(students, teachers, margins), 0.25 * parts[0] + 0.5 * parts[1] + parts[2]
    )


@pytest.mark.parametrize('shape', [(), (1,), (4,), (3, 1), (1, 3), (2, 3, 1, 1), (1, 3, 4, 4)])
def test_shape_of_the_margin_is_checked(shape):
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match='margin must have one value for each of') as error:
        OverhaulLoss()(x, x, torch.zeros(shape))
    assert str(error.value) == (
        'margin must have one value for each of the 3 channels of the teacher, (3,) or '
        f'(1, 3, 1, 1), got {shape} for the teacher (2, 3, 4, 4); margin_from_norm gives it from '
        'the batch norm before this map'
    )


@pytest.mark.parametrize('count', [0, 1, 3])
def test_number_of_margins_is_checked(count):
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match='one margin per map') as error:
        OverhaulLoss()([x, x], [x, x], [margin_of(3)] * count)
    assert f'got {count} for 2 maps of the teacher' in str(error.value)
    if count == 1:
        with pytest.raises(ValueError, match='one margin per map'):
            OverhaulLoss()([x, x], [x, x], margin_of(3))


@pytest.mark.parametrize('margin', [-1.0, None, [-1.0]])
def test_type_of_the_margin_is_checked(margin):
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(TypeError, match='margin must be a tensor, or a list or tuple of tensors'):
        OverhaulLoss()(x, x, margin)


# --- the margin of a batch norm --------------------------------------------------------------


def below_zero(gamma, beta):
    """``E[x; x < 0]`` and ``P(x < 0)`` of ``x ~ Normal(beta, |gamma|)``, by Simpson's rule."""
    low = min(beta, 0) - 12 * abs(gamma)
    x = np.linspace(low, 0, 200001)
    weights = np.full(len(x), 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    density = np.exp(-(((x - beta) / gamma) ** 2) / 2) / abs(gamma) / math.sqrt(2 * math.pi)
    density *= weights * (x[1] - x[0]) / 3
    return (x * density).sum(), density.sum()


PARAMETERS = [
    (gamma, ratio * abs(gamma))
    for gamma in (1.0, -1.0, 0.03, -7.0)
    for ratio in (-40, -8, -3.2, -1, -0.1, 0, 0.1, 1, 2.5, 3.0, 3.08, 3.1, 3.2, 8, 40)
]


def test_margin_against_numerical_integration():
    gamma, beta = (torch.tensor(x, dtype=torch.float64) for x in zip(*PARAMETERS))
    values, rare = margin_from_norm(gamma, beta), 0
    assert values.shape == gamma.shape and values.dtype == torch.float64
    for value, (g, b) in zip(values.tolist(), PARAMETERS):
        total, below = below_zero(g, b)
        if below <= 0.001:
            expected, rare = -3 * abs(g), rare + 1
        else:
            expected = total / below
        assert value == pytest.approx(expected, rel=1e-9)
        assert value < 0
    assert rare == 4 * 4  # a ratio above 3.0902


def test_margin_is_the_mean_of_what_a_norm_leaves_below_zero():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4)
    norm.weight.data = torch.tensor([1.0, -0.5, 2.0, 0.1])
    norm.bias.data = torch.tensor([0.0, 0.5, -1.0, -0.3])
    x = norm(5 + 3 * torch.randn(8, 4, 128, 128)).detach()
    below = [x[:, c][x[:, c] < 0].double().mean() for c in range(4)]
    torch.testing.assert_close(
        margin_from_norm(norm.weight, norm.bias).double(), torch.stack(below), rtol=0.02, atol=0
    )


def test_known_margins():
    value = margin_from_norm(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0]))
    expected = torch.tensor([1.0, 2.0]) * -math.sqrt(2 / math.pi)
    torch.testing.assert_close(value, expected)


def test_a_channel_without_spread():
    gamma = torch.zeros(4)
    beta = torch.tensor([-2.0, 0.0, -0.0, 3.0])
    assert margin_from_norm(gamma, beta).tolist() == [-2, 0, 0, 0]
    assert margin_from_norm(-gamma, beta).tolist() == [-2, 0, 0, 0]
    for tiny in (1e-30, 1e-45):  # the limits of the formula
        value = margin_from_norm(torch.full((4,), tiny), beta)
        torch.testing.assert_close(value, torch.tensor([-2.0, 0, 0, 0]), rtol=0, atol=1e-29)


@pytest.mark.parametrize(
    ('dtype', 'expected'),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_margin_is_computed_in_float64(dtype, expected):
    gamma, beta = (torch.tensor(x).to(dtype).requires_grad_() for x in zip(*PARAMETERS))
    value = margin_from_norm(gamma, beta)
    assert value.dtype == expected and not value.requires_grad
    assert torch.equal(value, margin_from_norm(gamma.double(), beta.double()).to(expected))


def test_nan_parameters_show():
    one, nan = torch.ones(1), torch.full((1,), math.nan)
    assert all(margin_from_norm(*pair).isnan().all() for pair in ((one, nan), (nan, one)))


@pytest.mark.parametrize(('weight', 'bias'), [((3,), (4,)), ((1,), (3,)), ((1, 3), (1, 3))])
def test_shapes_of_the_norm_are_checked(weight, bias):
    with pytest.raises(ValueError, match=r'weight and bias of a batch norm must both be \(C,\)'):
        margin_from_norm(torch.ones(weight), torch.ones(bias))
