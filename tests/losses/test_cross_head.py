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
            sure = p_t.max() if weights[n, place] else 0  # the authors leave out ignored places
            apart += sure * self.gap(priors[n, place], *sides)
            total += sure
        return cls * scores + box * self.per_box(apart, total)

    @staticmethod
    def gap(prior, ours, theirs):
        return 1 - giou(box_of(prior, ours), box_of(prior, theirs))

    @staticmethod
    def per_box(apart, total):
        return apart / N_POS


class TestCrossHeadLossOfFCOS(TestCrossHeadLoss):
    """Boxes by the logarithm of their overlap, divided by the centerness of the positives."""

    variants = (
        dict(divide_by='centerness', cls=0.4, box=0.75),
        dict(overlap='log_iou', cls=0),
    )
    differentiable = variants[:1]  # -log(IoU) has corners, where the overlap begins
    centerness = 1.75

    def build(self, **options):
        return super().build(**{'overlap': 'log_iou', **options})

    def given(self, scores):
        found = assigned_for(scores)._replace(centerness=torch.tensor(self.centerness))
        return dict(assigned=found)

    def reference(self, student, teacher, divide_by='positives', cls=1.0, box=4.0, overlap=''):
        by = N_POS / self.centerness if divide_by == 'centerness' else 1
        return super().reference(student, teacher, cls=cls * by, box=box * by)

    @staticmethod
    def gap(prior, ours, theirs):
        a, b = box_of(prior, ours), box_of(prior, theirs)
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
        inner = max(sides[0], 0) * max(sides[1], 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return -np.log(max(inner / (sum(areas) - inner), 1e-6))


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


@pytest.mark.parametrize('kind', ['bins', 'decoded'])
def test_places_that_the_student_ignores_cost_nothing(kind):
    ours, theirs = (maps(3, 32 if kind == 'bins' else 4, seed=seed) for seed in (0, 1))
    found = assigned_for([ours[0]])
    none = found._replace(weights=[torch.zeros_like(x) for x in found.weights])
    assert CrossHeadLoss(kind)(ours, theirs, none).item() == 0
    # what stands at an ignored place is no matter, and neither is how many there are
    before = CrossHeadLoss(kind)(ours, theirs, found)
    (ignored,) = (x == 0 for x in found.weights)
    assert ignored.any() and not ignored.all()
    for one in (*ours, *theirs):
        one.view(*one.shape[:2], -1).transpose(1, 2)[ignored] += 3
    torch.testing.assert_close(CrossHeadLoss(kind)(ours, theirs, found), before)


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
        (dict(cls=0, box=0), 'all 0'),
        (dict(centerness=-1), 'centerness cannot be negative'),
        (dict(overlap='iou'), "overlap must be one of 'giou', 'log_iou'"),
        (dict(divide_by='boxes'), "divide_by must be one of 'positives', 'centerness'"),
        (dict(box=-1), 'box cannot be negative'),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CrossHeadLoss(**options)


def test_a_centerness_of_0_divides_by_one():
    """As no positives do; the authors' code divides by 1e-6."""
    pair = maps(3, 20), maps(3, 20, seed=1)
    found = assigned_for(maps(3))
    values = [
        CrossHeadLoss('decoded', divide_by='centerness')(
            *pair, found._replace(centerness=torch.tensor(float(total)))
        )
        for total in (0, 1)
    ]
    assert torch.equal(*values)


def test_numbers_that_are_no_distributions():
    with pytest.raises(ValueError, match=r"4 numbers are no distributions .* boxes='decoded'"):
        CrossHeadLoss('bins')(maps(3, 4), maps(3, 4), assigned_for(maps(3)))


def test_centerness_of_positives_alone():
    """Binary cross-entropy with the teacher's probability; the rest of the loss stays."""
    kinds = [maps(3, 20, 1, seed=seed) for seed in (0, 1)]
    found = assigned_for(kinds[0][:1])
    student = [x.requires_grad_() for x in kinds[0]]
    whole = CrossHeadLoss('decoded', centerness=0.5)(student, kinds[1], found)
    rest = CrossHeadLoss('decoded')(student[:2], kinds[1][:2], found)
    s, t = (sigmoid(k[2].detach().numpy().reshape(2, 12)) for k in kinds)
    entropy = -(t * np.log(s) + (1 - t) * np.log(1 - s))
    expected = (entropy * found.positive(0).numpy()).sum() / N_POS
    assert (whole - rest).item() == pytest.approx(0.5 * expected)
    (slope,) = torch.autograd.grad(whole, student[2])
    wanted = 0.5 / N_POS * (s - t) * found.positive(0).numpy()
    np.testing.assert_allclose(slope.reshape(2, 12), wanted, atol=1e-12)


def test_a_head_finishes_its_boxes_before_they_are_decoded():
    found = assigned_for(maps(3))
    exp = found._replace(finish=lambda level, x: x.exp())
    x, y = maps(3, 20), maps(3, 20, seed=1)
    ready = [[pair[0], pair[1].exp()] for pair in (x, y)]
    assert CrossHeadLoss('decoded')(x, y, exp) == CrossHeadLoss('decoded')(*ready, found)


@pytest.mark.parametrize(
    ('options', 'given', 'message'),
    [
        (dict(divide_by='centerness'), maps(3, 20), 'takes a head that teaches a centerness'),
        (dict(centerness=1), maps(3, 20), r"and then their centerness, got 2 .*tap='bbox_head'"),
        (dict(centerness=1), maps(3, 20, 2), r'centerness \(2, 2, 4, 3\) and boxes .* do not fit'),
    ],
)
def test_heads_without_centerness(options, given, message):
    with pytest.raises(ValueError, match=message):
        CrossHeadLoss('decoded', **options)(given, given, assigned_for(given[:1]))
