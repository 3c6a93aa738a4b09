from __future__ import annotations

import numpy as np
import pytest
import torch
from detection_contract import (
    N_POS,
    STRIDE,
    DetectionContract,
    assigned_for,
    head_maps,
    sides_of,
    sigmoid,
    softmax,
)
from loss_contract import alike, random_pair
from test_protocol import box_of, giou

from mmkd_plugin.losses import CrossHeadLoss


class TestCrossHeadLoss(DetectionContract):
    name = 'CrossHeadLoss'
    variants = (
        dict(boxes='decoded'),
        dict(boxes='decoded', beta=2.0, cls=0.5, box=1.0),
        dict(boxes='decoded', cls=0, box=2.0),
    )
    differentiable = variants
    pairs = alike((2, 4, 6, 9), (1, 4, 7, 5), (2, 4, 1, 1), (2, 4, 1, 6))
    float16_at_1e4 = False

    def build(self, **options):
        return super().build(**{'boxes': 'decoded', **options})

    def reference(self, student, teacher, boxes='decoded', beta=1.0, cls=1.0, box=4.0):
        found = assigned_for([torch.tensor(student)])
        weights, priors = found.weights[0].numpy(), found.priors[0].numpy()
        maps = [sides_of(torch.tensor(x)).numpy() for x in (student, teacher)]
        scores, apart, total, width = 0.0, 0.0, 0.0, student.shape[3]
        for n, place in np.ndindex(weights.shape):
            at = (n, slice(None), *divmod(place, width))
            p_s, p_t = sigmoid(student[at]), sigmoid(teacher[at])
            entropy = -(p_t * np.log(p_s) + (1 - p_t) * np.log(1 - p_s))
            scores += weights[n, place] * (abs(p_t - p_s) ** beta * entropy).sum() / N_POS
            sides = [x[at].reshape(4, -1) for x in maps]
            apart += p_t.max() * self.gap(priors[n, place], *sides)
            total += p_t.max()
        return cls * scores + box * self.per_box(apart, total)

    @staticmethod
    def gap(prior, ours, theirs):
        return 1 - giou(box_of(prior, ours), box_of(prior, theirs))

    @staticmethod
    def per_box(apart, total):
        return apart / N_POS


class TestCrossHeadLossOfBins(TestCrossHeadLoss):
    variants = (
        dict(boxes='bins'),
        dict(boxes='bins', beta=2.0, cls=0.5, box=1.0),
        dict(boxes='bins', cls=0),
    )
    differentiable = variants

    def build(self, **options):
        return super().build(**{'boxes': 'bins', **options})

    @staticmethod
    def gap(prior, ours, theirs):
        pairs = [(softmax(a), softmax(b)) for a, b in zip(ours, theirs)]
        return sum((q * (np.log(q) - np.log(p))).sum() for p, q in pairs)

    @staticmethod
    def per_box(apart, total):
        return apart / (4 * total)

    def test_sequence_is_the_sum_over_its_pairs(self):
        """All levels share one mean: levels of equal maps give that of one."""
        student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
        loss = CrossHeadLoss(cls=0)
        alone = self.call(loss, student, teacher)
        torch.testing.assert_close(self.call(loss, [student] * 3, [teacher] * 3), alone)

    def test_loss_weight_for_each_map(self):
        student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
        alone = self.call(CrossHeadLoss(cls=0), student, teacher)
        loss = CrossHeadLoss(cls=0, loss_weight=[1.0, 5.0])
        weighted = self.call(loss, [student] * 2, [teacher] * 2)
        torch.testing.assert_close(weighted, 3 * alone)


def maps(*channels, seed=0, size=(4, 3)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, *size, generator=generator, dtype=torch.float64) for c in channels]


def test_boxes_are_decoded_as_those_of_the_teacher():
    """Both came out of it."""
    asked = []
    found = assigned_for(maps(3))
    decode = found.decode
    found = found._replace(
        decode=lambda level, x, of_teacher: asked.append(of_teacher) or decode(level, x, of_teacher)
    )
    CrossHeadLoss('decoded')(maps(3, 20), maps(3, 20, seed=1), found)
    assert asked == [True, True] and STRIDE


def test_places_that_the_student_ignores_cost_no_classes():
    scores, boxes = maps(3, 20)
    found = assigned_for([scores])
    found = found._replace(weights=[torch.zeros_like(x) for x in found.weights])
    loss = CrossHeadLoss(box=0)([scores, boxes], maps(3, 20, seed=1), found)
    assert loss.item() == 0


def test_a_teacher_that_sees_nothing_has_no_say_about_boxes():
    scores, boxes = (x.float() for x in maps(3, 20))
    nothing = torch.full_like(scores, -1e4)
    for kind in ('bins', 'decoded'):
        loss = CrossHeadLoss(kind, cls=0)(
            [scores, boxes], [nothing, -boxes], assigned_for([scores])
        )
        assert loss.item() == 0


def test_identical_heads_cost_nothing():
    x = head_maps(maps(3)[0])
    for kind in ('bins', 'decoded'):
        loss = CrossHeadLoss(kind)(x, [m.clone() for m in x], assigned_for(x[:1]))
        assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(boxes='deltas'), "boxes must be one of 'bins', 'decoded'"),
        (dict(beta=0.5), 'beta must be 0 or at least 1'),
        (dict(cls=0, box=0), 'both 0'),
        (dict(box=-1), 'box cannot be negative'),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CrossHeadLoss(**options)


def test_numbers_that_are_no_distributions():
    with pytest.raises(ValueError, match=r"4 numbers are no distributions .* boxes='decoded'"):
        CrossHeadLoss('bins')(maps(3, 4), maps(3, 4), assigned_for(maps(3)))
