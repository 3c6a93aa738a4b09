from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detection_contract import DetectionContract, assigned_for, sides_of, sigmoid, softmax
from loss_contract import alike, random_pair

from mmkd_plugin.losses import BoxDistributionLoss
from mmkd_plugin.losses.box_distribution import valuable_region
from mmkd_plugin.losses.numerics.boxes import pad_boxes

BOXES = ([[3, 5, 40, 33], [20, 1, 60, 29]], [], [[10, 10, 43, 41]])


def boxes_of(batch):
    return [torch.tensor(BOXES[n % 3], dtype=torch.float64).view(-1, 4) for n in range(batch)]


def kl(student, teacher, tau):
    t, s = softmax(teacher / tau), softmax(student / tau)
    return (t * (np.log(t) - np.log(s))).sum()


def iou_of(a, b):
    both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return both / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both)


def centre(box):
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def region_of(priors, kept, boxes):
    """Anchor by anchor and object by object, for one image: levels of (P, 4) and (P,)."""
    regions = [np.zeros(len(level)) for level in priors]
    for box in boxes:
        near = []
        for level, keep in zip(priors, kept):
            away = sorted(
                (((centre(a) - centre(box)) ** 2).sum(), iou_of(a, box))
                for a, k in zip(level, keep)
                if k
            )
            near += [iou for _, iou in away[:9]]
        threshold = np.mean(near) + (np.std(near, ddof=1) if len(near) > 1 else 0)
        for region, level, keep in zip(regions, priors, kept):
            for i in np.flatnonzero(keep):
                a, iou = level[i], iou_of(level[i], box)
                around = [np.maximum(a[2:], box[2:]), np.minimum(a[:2], box[:2])]
                apart = ((centre(a) - centre(box)) ** 2).sum() / (
                    (around[0] - around[1]) ** 2
                ).sum()
                if threshold / 4 <= iou - apart < threshold:
                    region[i] = max(region[i], iou)
    return regions


PADDED = pad_boxes(boxes_of(7))


class TestBoxDistributionLoss(DetectionContract):
    name = 'BoxDistributionLoss'
    variants = (
        dict(valuable=0.0),
        dict(tau=2.0, bins='sum', main=1.0, valuable=0.0, cls=0.5, cls_tau=1.0),
        dict(main=0.5, valuable=2.0, cls=1.0),
        dict(main=0.0, cls=0.0, valuable=1.0, tau=1.0),
    )
    differentiable = (dict(main=0.0, valuable=3.0), dict(main=0.0, cls=0.0, tau=1.0))
    saved_maps = 9.25  # the gradients of scores and boxes, which are eight times as large here
    pairs = alike((2, 4, 6, 9), (1, 4, 7, 5), (2, 4, 4, 2), (3, 4, 3, 3))

    def given(self, scores):
        return dict(super().given(scores), padded_boxes=PADDED[: len(scores[0])])

    @staticmethod
    def reference(
        student, teacher, tau=10.0, bins='mean', main=0.25, valuable=0.25, cls=10.0, cls_tau=2.0
    ):
        found = assigned_for([torch.tensor(student)])
        labels, weights = found.labels[0].numpy(), found.weights[0].numpy()
        boxes_s, boxes_t = (sides_of(torch.tensor(x)).numpy() for x in (student, teacher))
        classes, width = student.shape[1], student.shape[3]
        positive, total, of_classes = labels < classes, 0.0, 0.0
        for n, boxes in enumerate(boxes_of(len(student))):
            prior = found.priors[0][n].numpy()
            (region,) = region_of([prior], [weights[n] > 0], boxes.numpy())
            for place in range(labels.shape[1]):
                at = (n, slice(None), *divmod(place, width))
                sides = [x[at].reshape(4, -1) for x in (boxes_s, boxes_t)]
                k = sum(kl(s, t, tau) for s, t in zip(*sides)) * tau**2
                k /= sides[0].shape[1] if bins == 'mean' else 1
                total += valuable * region[place] * k / 16
                if positive[n, place]:
                    total += main * sigmoid(student[at]).max() * k / 4
                    apart = kl(student[at], teacher[at], cls_tau) * cls_tau**2 / classes
                    of_classes += weights[n, place] * apart
        return total + cls * of_classes / max(positive.sum(), 1)

    def test_sequence_is_the_sum_over_its_pairs(self):
        """Without the valuable region: its threshold is one of all levels."""
        students, teachers = zip(*(random_pair(shapes) for shapes in alike(*SAME_BATCH)))
        for options in self.variants[:2]:
            loss = self.build(**options)
            value = self.call(loss, students, teachers)
            parts = [self.call(loss, *pair) for pair in zip(students, teachers)]
            torch.testing.assert_close(value, sum(parts))

    def test_loss_weight_for_each_map(self):
        students, teachers = zip(*(random_pair(shapes) for shapes in alike(*SAME_BATCH)))
        loss = self.build(**self.variants[0], loss_weight=[1.0, 2.0, 4.0])
        parts = [
            self.call(self.build(**self.variants[0]), *pair) for pair in zip(students, teachers)
        ]
        expected = sum(2**n * part for n, part in enumerate(parts))
        torch.testing.assert_close(self.call(loss, students, teachers), expected)
        with pytest.raises(ValueError, match='loss_weight has 3 entries for 1 comparisons'):
            self.call(loss, students[0], teachers[0])


SAME_BATCH = (2, 4, 6, 9), (2, 4, 3, 5), (2, 4, 2, 2)


@pytest.mark.parametrize('ignored', [False, True])
def test_the_valuable_region_anchor_by_anchor(ignored):
    found = assigned_for([torch.zeros(3, 2, *size) for size in ((8, 9), (4, 5), (2, 1))])
    priors = [level * 2**i for i, level in enumerate(found.priors)]
    kept = [(w > 0) if ignored else torch.ones_like(w).bool() for w in found.weights]
    regions = valuable_region(priors, kept, pad_boxes(boxes_of(3)))
    assert [x.shape for x in regions] == [x.shape for x in kept] and regions[0][0].any()
    for n, boxes in enumerate(boxes_of(3)):
        expected = region_of(
            [x[n].numpy() for x in priors], [x[n].numpy() for x in kept], boxes.numpy()
        )
        for ours, theirs in zip(regions, expected):
            np.testing.assert_allclose(ours[n].numpy(), theirs, rtol=1e-12)


def test_a_region_without_objects_or_anchors_is_empty():
    priors = [torch.rand(2, 1, 4).sort(2).values * 10]
    kept = [torch.ones(2, 1).bool()]
    for boxes in (torch.zeros(2, 0, 4), torch.full((2, 3, 4), torch.nan)):
        assert not valuable_region(priors, kept, boxes)[0].any()
    some = torch.tensor([[[0.0, 0, 9, 9]]] * 2)
    assert not valuable_region(priors, [~kept[0]], some)[0].any()
    assert valuable_region(priors, kept, some)[0].isfinite().all()


def test_many_objects_cost_few_operations():
    from allocations import Allocations

    found = assigned_for([torch.zeros(2, 2, 8, 8)])
    calls = []
    for count in (1, 200):
        boxes = pad_boxes([torch.rand(count, 4, dtype=torch.float64).sort(1).values * 60] * 2)
        with Allocations() as made:
            valuable_region(found.priors, [w > 0 for w in found.weights], boxes)
        calls.append(made.calls)
    assert calls[1] <= calls[0] + 2


def maps(classes=3, bins=4, size=(4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, c, *size, generator=generator, dtype=torch.float64)
        for c in (classes, 4 * bins)
    ]


def test_without_positives_and_objects_it_is_zero():
    student, teacher = maps(seed=0), maps(seed=1)
    found = assigned_for(student[:1])
    nobody = [torch.full_like(x, 3) for x in found.labels]
    boxes = [torch.zeros(0, 4)] * 2
    for x in student:
        x.requires_grad_()
    loss = BoxDistributionLoss()(student, teacher, found._replace(labels=nobody), boxes)
    loss.backward()
    assert loss.item() == 0 and not any(x.grad.any() for x in student)


def test_the_certainty_of_the_student_gets_no_gradient():
    student, teacher = maps(seed=0), maps(seed=1)
    student[0].requires_grad_()
    student[1].requires_grad_()
    found = assigned_for(student[:1])
    BoxDistributionLoss(cls=0)(student, teacher, found, boxes_of(2)).backward()
    assert not student[0].grad.any() and student[1].grad.any()


@pytest.mark.parametrize(('each', 'numbers'), [(1, 4), (3, 4), (3, 16)])
def test_heads_without_distributions(each, numbers):
    x = torch.ones(2, 2 * each, 4, 4)
    pair = [x, torch.ones(2, each * numbers, 4, 4)]
    words = f'one box for each position.*; the head gives {each} with {numbers} numbers each'
    with pytest.raises(ValueError, match=words):
        BoxDistributionLoss()(pair, pair, assigned_for([x], each), boxes_of(2))


@pytest.mark.parametrize('name', ['tau', 'cls_tau', 'main', 'valuable', 'cls', 'bins'])
def test_arguments_are_checked(name):
    for value in (-1, math.nan, '1', None):
        with pytest.raises((TypeError, ValueError), match=name):
            BoxDistributionLoss(**{name: value})
