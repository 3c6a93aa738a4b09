from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_contract import LOW_PRECISION, LossContract, alike, random_pair

from mmkd_plugin.losses import CrossHeadLoss
from mmkd_plugin.losses.cross_head import boxes_apart

WEIGHTS = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 0.25])
POSITIVES = 3.0
BINS = 3


def as_boxes(x, channels):
    """Maps of boxes that follow from maps of scores, so that one map stands for both."""
    return 0.5 * x[:, torch.arange(channels) % max(x.shape[1], 1)]


def label_weights(x):
    shape = x.shape[0], x.shape[2] * x.shape[3]
    return WEIGHTS[torch.arange(shape[0] * shape[1]) % len(WEIGHTS)].view(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def giou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


def decoded(anchor, deltas):
    """As mmdet decodes deltas, in pixels."""
    x, y, width, height = anchor
    dx, dy, dw, dh = deltas
    limit = abs(math.log(16 / 1000))
    w, h = width * np.exp(np.clip(dw, -limit, limit)), height * np.exp(np.clip(dh, -limit, limit))
    x, y = x + dx * width, y + dy * height
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class TestCrossHeadLoss(LossContract):
    name = 'CrossHeadLoss'
    variants = (
        dict(boxes='deltas'),
        dict(boxes='deltas', beta=2.0, cls_weight=0.5, box_weight=1.0),
        dict(boxes='deltas', box_weight=0.0),
        dict(boxes='deltas', cls_weight=0, box_weight=2.0),
    )
    pairs = alike((2, 3, 5, 4), (1, 7, 1, 1), (2, 4, 1, 6), (3, 1, 4, 3))
    has_fast_form = False
    float16_at_1e4 = False
    saved_maps = 12
    channels = 4

    def call(self, loss, student, teacher):
        """Boxes follow from the scores that the contract gives."""
        if not self.well_formed(student) or not self.well_formed(teacher):
            return loss(student, teacher)
        students, teachers = (
            list(x) if isinstance(x, (list, tuple)) else [x] for x in (student, teacher)
        )
        boxes = [[as_boxes(x, self.channels) for x in maps] for maps in (students, teachers)]
        weights = [label_weights(x) for x in students]
        return loss(students + boxes[0], teachers + boxes[1], weights, POSITIVES)

    @staticmethod
    def well_formed(maps):
        maps = maps if isinstance(maps, (list, tuple)) else [maps]
        return bool(maps) and all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in maps)

    def reference(self, student, teacher, boxes, beta=1.0, cls_weight=1.0, box_weight=4.0):
        weights = label_weights(torch.tensor(student)).numpy()
        box_maps = [as_boxes(torch.tensor(x), self.channels).numpy() for x in (student, teacher)]
        images, classes, height, width = student.shape
        scores, apart, sure = 0.0, 0.0, 0.0
        for n in range(images):
            for place, (row, column) in enumerate(np.ndindex(height, width)):
                for k in range(classes):
                    s, p = student[n, k, row, column], sigmoid(teacher[n, k, row, column])
                    entropy = np.logaddexp(0, s) - s * p
                    scores += weights[n, place] * abs(sigmoid(s) - p) ** beta * entropy
                most = sigmoid(teacher[n, :, row, column].max())
                s, t = (x[n, :, row, column] for x in box_maps)
                apart += most * self.gap(s, t, row, column)
                sure += most
        return cls_weight * scores / POSITIVES + box_weight * self.per_box(apart, sure)

    @staticmethod
    def gap(s, t, row, column):
        anchor = 8.0 * column + 3, 8.0 * row + 5, 32.0, 20.0
        return 1 - giou(decoded(anchor, s), decoded(anchor, t))

    @staticmethod
    def per_box(apart, sure):
        return apart / POSITIVES

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_low_precision_inputs_are_compared_in_float32(self, dtype):
        for options in self.variants:
            shapes = (2, 3, 5, 4), (2, self.channels, 5, 4)
            pairs = [random_pair((shape, shape), dtype, seed=n) for n, shape in enumerate(shapes)]
            students, teachers = ([pair[n].detach() for pair in pairs] for n in (0, 1))
            found = []
            for kind in (dtype, torch.float64):
                leaves = [x.detach().to(kind).requires_grad_() for x in students]
                loss = self.build(**options)
                value = loss(leaves, teachers, [label_weights(students[0])], POSITIVES)
                value.backward()
                found.append((value, [x.grad for x in leaves]))
            (value, grads), (expected, slopes) = found
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
            for grad, slope in zip(grads, slopes):
                assert grad.dtype == dtype
                torch.testing.assert_close(grad.double(), slope, rtol=1e-2, atol=1e-6)

    def test_sequences_must_be_equally_long(self):
        x = torch.ones(1, 2, 3, 3)
        with pytest.raises(ValueError, match='numbers of maps differ: student 6, teacher 10'):
            self.call(self.build(), [x] * 3, [x] * 5)
        with pytest.raises(ValueError, match='no maps'):
            self.call(self.build(), [], [])

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match='map sizes differ'):
            CrossHeadLoss()([torch.ones(2, 3, 1, 4)] * 2, [torch.ones(2, 3, 4, 4)] * 2)

    def test_batch_sizes_must_agree(self):
        with pytest.raises(ValueError, match='batch sizes differ'):
            CrossHeadLoss()([torch.ones(2, 3, 4, 4)] * 2, [torch.ones(1, 3, 4, 4)] * 2)


class TestCrossHeadLossOfBins(TestCrossHeadLoss):
    variants = (
        dict(boxes='bins'),
        dict(boxes='bins', beta=1.5, cls_weight=0.5, box_weight=1.0),
        dict(boxes='bins', cls_weight=0),
    )
    channels = 4 * BINS

    @staticmethod
    def gap(s, t, row, column):
        total = 0.0
        for side in range(4):
            a, b = (softmax(x[side * BINS : (side + 1) * BINS]) for x in (s, t))
            total += sum(q * (np.log(q) - np.log(p)) for p, q in zip(a, b))
        return total

    @staticmethod
    def per_box(apart, sure):
        return apart / (4 * sure)

    def test_sequence_is_the_sum_over_its_pairs(self):
        """All levels share one mean: levels of equal maps give that of one."""
        student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
        loss = CrossHeadLoss(cls_weight=0)
        alone = self.call(loss, student, teacher)
        torch.testing.assert_close(self.call(loss, [student] * 3, [teacher] * 3), alone)

    def test_loss_weight_for_each_map(self):
        student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
        alone = self.call(CrossHeadLoss(cls_weight=0), student, teacher)
        loss = CrossHeadLoss(cls_weight=0, loss_weight=[1.0, 5.0])
        weighted = self.call(loss, [student] * 2, [teacher] * 2)
        torch.testing.assert_close(weighted, 3 * alone)


def levels(*channels, size=(4, 3)):
    torch.manual_seed(0)
    return [torch.randn(2, c, *size, dtype=torch.float64) for c in channels]


def test_several_anchors_are_one_after_the_other():
    """As mmdet lies them out: (N, H, W, A, K), (N, H, W, A, 4) and (N, H*W*A)."""
    scores, own, boxes, theirs = levels(2 * 5, 2 * 5, 2 * 4, 2 * 4)
    weights = torch.rand(2, 4 * 3 * 2, dtype=torch.float64)
    loss = CrossHeadLoss(boxes='deltas')([scores, boxes], [own, theirs], [weights], 2.0)
    parts = []
    for anchor in range(2):
        pick = [slice(anchor * n, (anchor + 1) * n) for n in (5, 4)]
        student, teacher = (
            [scores[:, pick[0]], boxes[:, pick[1]]],
            [own[:, pick[0]], theirs[:, pick[1]]],
        )
        weight = weights.view(2, 4 * 3, 2)[..., anchor]
        parts.append(CrossHeadLoss(boxes='deltas')(student, teacher, [weight], 2.0))
    torch.testing.assert_close(loss, sum(parts))


def test_places_that_the_student_ignores_cost_no_scores():
    scores, own, boxes = levels(5, 5, 8)
    weights = torch.zeros(2, 12)
    loss = CrossHeadLoss(box_weight=0)([scores, boxes], [own, boxes], [weights], 1.0)
    assert loss.item() == 0


def test_the_coder_scales_deltas():
    s, t = levels(4, 4)
    stds = (0.1, 0.1, 0.2, 0.2)
    scaled = [x * torch.tensor(stds, dtype=x.dtype).view(4, 1, 1) for x in (s, t)]
    expected = boxes_apart(*scaled, 1, (1.0,) * 4)
    torch.testing.assert_close(boxes_apart(s, t, 1, stds), expected)


def test_a_teacher_that_sees_nothing_has_no_say_about_boxes():
    scores, boxes, other = levels(5, 8, 8)
    nothing = torch.full_like(scores, -1e4).float()
    loss = CrossHeadLoss(cls_weight=0)([scores.float(), boxes.float()], [nothing, other.float()])
    assert loss.item() == 0


@pytest.mark.parametrize(
    ('maps', 'weights', 'message'),
    [
        ((5, 4, 4), None, 'an even number of maps, got 3'),
        ((5, 4), None, "boxes='bins' does not fit maps of scores"),
        ((5, 9), None, "boxes='bins' does not fit maps of scores"),
        ((5, 8), [torch.ones(2, 13)], 'need the same anchors'),
        ((5, 8), [torch.ones(2, 12)] * 2, 'label_weights has 2 entries for 1 levels'),
    ],
)
def test_maps_that_are_no_scores_and_boxes(maps, weights, message):
    with pytest.raises(ValueError, match=message):
        CrossHeadLoss()(levels(*maps), levels(*maps), weights)


def test_scores_and_boxes_of_other_levels():
    maps = [*levels(5), *levels(8, size=(2, 2))]
    with pytest.raises(ValueError, match='scores and boxes lie on different maps'):
        CrossHeadLoss()(maps, maps)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(boxes='distances'), "boxes must be one of 'bins', 'deltas'"),
        (dict(beta=0.5), 'beta must be at least 1'),
        (dict(cls_weight=0, box_weight=0), 'both 0'),
        (dict(stds=(0.1, 0.2)), 'stds must be four numbers'),
        (dict(box_weight=-1), 'box_weight cannot be negative'),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CrossHeadLoss(**options)
