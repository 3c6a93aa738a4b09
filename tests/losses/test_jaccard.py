from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelled import LabelledContract, random_labels
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import JaccardLoss
from mmkd_plugin.losses.jaccard import jaccard


def by_hand(student, teacher, alpha=1.0, beta=1.0, smooth=1.0, scope='batch', kept=None):
    return from_shares(*map(shares, (student, teacher)), alpha, beta, smooth, scope, kept)


def shares(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def from_shares(p, q, alpha=1.0, beta=1.0, smooth=1.0, scope='batch', kept=None):
    if kept is not None:
        p, q = p * kept[:, None], q * kept[:, None]
    groups = [range(len(p))] if scope == 'batch' else [[n] for n in range(len(p))]
    costs = []
    for images in groups:
        for c in range(p.shape[1]):
            a, b = (np.concatenate([x[n, c].ravel() for n in images]) for x in (p, q))
            tp = (a.sum() + b.sum() - abs(a - b).sum()) / 2
            fp, fn = a.sum() - tp, b.sum() - tp
            costs.append(1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
    return float(np.mean(costs))


class TestJaccardLoss(LossContract):
    name = 'JaccardLoss'
    variants = (dict(), dict(alpha=0.5, beta=0.5, smooth=1e-3), dict(scope='image', smooth=0.1))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 4, 1, 6))

    @staticmethod
    def reference(student, teacher, **options):
        return by_hand(student, teacher, **options)


def one_hot(labels, like):
    """1 for the class of the label, resized by nearest; and where there is one of them."""
    q, kept = np.zeros(like.shape), np.zeros((len(like), *like.shape[2:]), bool)
    for n, y, x in np.ndindex(kept.shape):
        label = labels[
            n, y * labels.shape[1] // like.shape[2], x * labels.shape[2] // like.shape[3]
        ]
        if 0 <= label < like.shape[1]:
            q[n, label, y, x], kept[n, y, x] = 1, True
    return q, kept


class TestJaccardLossWithLabels(LabelledContract):
    name = 'JaccardLoss'
    variants = (
        dict(target='labels', ignore_index=255),
        dict(target='labels', alpha=0.5, beta=0.5, smooth=1e-3),  # 255 is no class
        dict(target='labels', scope='image', smooth=0.1),
    )
    identical_is_zero = zeros_cost_nothing = False

    @staticmethod
    def reference(student, teacher, target, ignore_index=255, **options):
        q, kept = one_hot(random_labels(len(student)).numpy(), student)
        return from_shares(shares(student), q, kept=kept, **options)


SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize('scope', ['batch', 'image'])
def test_ignored_positions_and_factors_of_their_own(scope):
    student, teacher = random_pair((SHAPE, SHAPE))
    labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    options = dict(alpha=0.3, beta=0.7, scope=scope)
    loss = JaccardLoss(ignore_index=2, **options)
    assert loss.needs == ('labels',) and JaccardLoss().needs == ()
    kept = (labels != 2).numpy()
    expected = by_hand(student.detach().numpy(), teacher.numpy(), kept=kept, **options)
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels), student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert not grad[(labels == 2)[:, None].expand(SHAPE)].any() and grad.any()
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels * 0 + 2), student, teacher)
    assert value.item() == 0 and not grad.any()
    with pytest.raises(ValueError, match='ignore_index=2 needs `labels`'):
        loss(student, teacher)


@pytest.mark.parametrize('target', ['teacher', 'labels'])
def test_at_the_size_of_the_images(target):
    """As the authors' code: logits upsampled first, labels as they are."""
    student, teacher = random_pair((SHAPE, (2, 3, 2, 5)))
    labels = random_labels(2, (9, 13))
    loss = JaccardLoss(target=target, ignore_index=255, upsample=True)
    assert loss.needs == ('labels', 'image_size') and not loss.needs_same_size
    large = [
        F.interpolate(x, (9, 13), mode='bilinear', align_corners=False) for x in (student, teacher)
    ]
    p, q = (shares(x.detach().numpy()) for x in large)
    hard, kept = one_hot(labels.numpy(), p)
    assert kept.any() and not kept.all()
    expected = from_shares(p, hard if target == 'labels' else q, kept=kept)

    def call(s, t):
        return loss(s, t, labels, (9, 13))

    value, grad = value_and_grad(call, student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-9) and grad.shape == SHAPE
    assert torch.autograd.gradcheck(call, (student, teacher))
    with pytest.raises(ValueError, match='upsample=True needs `image_size`'):
        loss(student, teacher, labels)


def test_labels_as_a_target_have_to_be_given():
    student, teacher = random_pair((SHAPE, SHAPE))
    assert JaccardLoss(target='labels').needs == ('labels',)
    with pytest.raises(ValueError, match="target='labels' needs `labels`"):
        JaccardLoss(target='labels')(student, teacher)


def test_a_teacher_that_is_not_read_may_have_other_classes_and_another_size():
    student, teacher = random_pair((SHAPE, (2, 7, 2, 2)))
    loss, labels = JaccardLoss(target='labels'), random_labels(2)
    assert not loss.needs_same_channels and not loss.needs_same_size
    assert JaccardLoss().needs_same_channels and JaccardLoss().needs_same_size
    assert torch.equal(loss(student, teacher, labels), loss(student, student.detach(), labels))


def test_hard_predictions_have_the_metric():
    """Class 0 shares one of two positions, class 1 two of three."""
    student = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    s, t = (40.0 * torch.eye(2)[x].permute(0, 2, 1)[:, :, None] for x in student)
    expected = 1 - (1 / 2 + 2 / 3) / 2
    assert jaccard(s, t, smooth=1e-9).item() == pytest.approx(expected, rel=1e-5)


def test_a_single_class_teaches_nothing():
    assert 'single class' in JaccardLoss().teaches_nothing(1)
    assert JaccardLoss().teaches_nothing(2) is None
    assert JaccardLoss()(*random_pair(((2, 1, 3, 3),) * 2)).item() == 0


@pytest.mark.parametrize(
    ('options', 'error', 'text'),
    [
        (dict(alpha=-1), ValueError, 'alpha cannot be negative'),
        (dict(alpha=0, beta=0), ValueError, 'alpha and beta are both 0'),
        (dict(smooth=0), ValueError, 'smooth must be above 0'),
        (dict(scope='all'), ValueError, "scope must be one of 'batch', 'image'"),
        (dict(ignore_index='1'), TypeError, 'ignore_index must be an int or None'),
        (dict(target='label'), ValueError, "target must be one of 'teacher', 'labels'"),
        (dict(upsample=1), TypeError, 'upsample must be True or False'),
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        JaccardLoss(**options)
