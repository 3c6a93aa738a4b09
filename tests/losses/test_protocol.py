from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detection_contract import N_POS, STRIDE, DetectionContract, assigned_for, sides_of, sigmoid
from detection_contract import softmax as soft
from loss_contract import alike

from mmkd_plugin.losses import ProtocolLoss


def box_of(prior, sides):
    """x1, y1, x2, y2 of a place, from the logits (4, bins) of its sides."""
    distances = [STRIDE * (soft(side) * (1 + np.arange(len(side)))).sum() for side in sides]
    x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
    return x - distances[0], y - distances[1], x + distances[2], y + distances[3]


def giou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union - (around - union) / around


class TestProtocolLoss(DetectionContract):
    name = 'ProtocolLoss'
    variants = (dict(), dict(beta=2.0, cls=0.5, box=1.0), dict(beta=0.0, box=2.0))
    differentiable = variants[:2]
    pairs = alike((2, 4, 6, 9), (1, 4, 7, 5), (2, 4, 1, 1), (2, 4, 1, 6))
    identical_is_zero = False  # with beta 0 the entropy of the teacher is left
    zeros_cost_nothing = False
    float16_at_1e4 = False

    @staticmethod
    def reference(student, teacher, beta=1.0, cls=1.0, box=4.0):
        found = assigned_for([torch.tensor(student)])
        weights, priors = found.weights[0].numpy(), found.priors[0].numpy()
        boxes_s, boxes_t = (sides_of(torch.tensor(x)).numpy() for x in (student, teacher))
        total, width = 0.0, student.shape[3]
        for n, place in np.ndindex(weights.shape):
            at = (n, slice(None), *divmod(place, width))
            p_s, p_t = sigmoid(student[at]), sigmoid(teacher[at])
            entropy = -(p_t * np.log(p_s) + (1 - p_t) * np.log(1 - p_s))
            total += cls * weights[n, place] * (abs(p_t - p_s) ** beta * entropy).sum()
            pair = [box_of(priors[n, place], x[at].reshape(4, -1)) for x in (boxes_s, boxes_t)]
            total += box * weights[n, place] * abs(p_t - p_s).max() * (1 - giou(*pair))
        return total / N_POS


def call(student, teacher, found, **options):
    return ProtocolLoss(**options)(student, teacher, found)


def maps(each=1, classes=3, bins=5, size=(4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, each * c, *size, generator=generator, dtype=torch.float64)
        for c in (classes, 4 * bins)
    ]


@pytest.mark.parametrize('beta', [1.0, 2.0])
def test_identical_heads_cost_nothing(beta):
    x = maps()
    assert call(x, [m.clone() for m in x], assigned_for(x[:1]), beta=beta).item() == 0


def test_several_anchors_at_a_position_are_places_of_their_own():
    """Three anchors of a position are three positions of a map that is three times as wide."""
    (s, t), found = (maps(3, seed=i) for i in (0, 1)), assigned_for([maps(3)[0]], each=3)
    wide = [
        [m.view(2, 3, -1, 4, 5).permute(0, 2, 3, 4, 1).reshape(2, -1, 4, 15) for m in x]
        for x in (s, t)
    ]
    expected = call(*wide, found)
    assert expected > 0
    torch.testing.assert_close(call(s, t, found), expected)


def test_the_boxes_of_a_teacher_are_decoded_as_its_own():
    s, t = maps(seed=0), maps(seed=1)
    found, asked = assigned_for(s[:1]), []

    def decode(level, boxes, of_teacher):
        asked.append((level, of_teacher))
        return found.decode(level, boxes, of_teacher)

    call(s, t, found._replace(decode=decode))
    assert asked == [(0, False), (0, True)]


def test_a_level_without_positives_adds_nothing():
    s, t = ([a, a, b, b] for a, b in (maps(seed=0), maps(seed=1)))
    found = assigned_for(s[:2])
    one = call(s[::2], t[::2], found._replace(labels=found.labels[:1], weights=found.weights[:1]))
    nobody = torch.full_like(found.labels[1], found.classes)
    two = call(s, t, found._replace(labels=[found.labels[0], nobody]))
    assert one > 0
    torch.testing.assert_close(two, one)


def test_ignored_places_and_the_count():
    s, t = maps(seed=0), maps(seed=1)
    found = assigned_for(s[:1])
    torch.testing.assert_close(
        call(s, t, found._replace(n_pos=torch.tensor(7.0))), call(s, t, found) / 2
    )
    none = [torch.zeros_like(x) for x in found.weights]
    assert call(s, t, found._replace(weights=none)).item() == 0


def test_boxes_get_no_gradient_through_their_weight():
    s, t = maps(seed=0), maps(seed=1)
    found = assigned_for(s[:1])
    s[0].requires_grad_()
    s[1].requires_grad_()
    call(s, t, found, cls=0).backward()
    assert not s[0].grad.any() and s[1].grad.any()


@pytest.mark.parametrize('name', ['beta', 'cls', 'box'])
def test_factors_are_checked(name):
    for value in (-1, math.nan, '1', None):
        with pytest.raises((TypeError, ValueError), match=name):
            ProtocolLoss(**{name: value})


def test_a_power_with_an_infinite_slope_is_refused():
    with pytest.raises(ValueError, match=r'beta must be 0 or at least 1, got 0\.5'):
        ProtocolLoss(beta=0.5)
