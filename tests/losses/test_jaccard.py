from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import JaccardLoss
from mmkd_plugin.losses.jaccard import jaccard


def by_hand(student, teacher, alpha=1.0, beta=1.0, smooth=1.0, scope='batch', kept=None):
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (student, teacher))
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
    ],
)
def test_options_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        JaccardLoss(**options)
