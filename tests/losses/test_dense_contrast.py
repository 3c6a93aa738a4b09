from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_contract import SEED, LearningContract, set_up
from loss_contract import alike, random_pair
from test_masked_generation import generated

from mmkd_plugin.losses import DenseContrastLoss
from mmkd_plugin.losses.dense_contrast import dense_contrast
from mmkd_plugin.losses.masked_generation import kept


def pooled(x, pool):
    """Windows that are whole, each by its maximum."""
    rows, columns = x.shape[2] // pool, x.shape[3] // pool
    windows = x[:, :, : rows * pool, : columns * pool].reshape(
        *x.shape[:2], rows, pool, columns, pool
    )
    return windows.max((3, 5))


def contrast(y, t, groups, patch, pool, tau):
    """Token after token."""
    y, t = pooled(y, pool), pooled(t, pool)
    batch, channels, height, width = y.shape
    height, width, each = (
        height // patch[0] * patch[0],
        width // patch[1] * patch[1],
        channels // groups,
    )
    places = [(m, r, c) for m in range(groups) for r in range(patch[0]) for c in range(patch[1])]
    total = 0.0
    for n in range(batch):
        for top in range(0, height, patch[0]):
            for left in range(0, width, patch[1]):

                def token(x, m, r, c, n=n, top=top, left=left):
                    return x[n, m * each : (m + 1) * each, top + r, left + c]

                for query in places:
                    s = token(y, *query)
                    right = -np.abs(s - token(t, *query)).sum() / tau
                    others = [
                        -np.abs(s - token(t, *key)).sum() / tau
                        for key in places
                        if key[0] != query[0]
                    ]
                    logits = np.array([right, *others])
                    highest = logits.max()
                    total += highest + np.log(np.exp(logits - highest).sum()) - right
    return total / (batch * height * width)


class TestDenseContrastLoss(LearningContract):
    name = 'DenseContrastLoss'
    variants = (
        dict(groups=2, patch=(2, 2), pool=2, tau=0.5, mask_ratio=0, fd=0.1, ctr=1.0),
        dict(groups=4, patch=(1, 2), pool=1, tau=0.7, mask_ratio=0, fd=1, ctr=0.1),
    )
    pairs = alike((2, 4, 4, 8), (1, 8, 5, 6))

    @staticmethod
    def reference(
        student,
        teacher,
        groups=16,
        patch=(4, 4),
        pool=4,
        tau=0.07,
        mask_ratio=0.75,
        fd=4e-5,
        ctr=1e-3,
    ):
        x = torch.tensor(student)
        loss = set_up(DenseContrastLoss(), x, x)
        y = generated(loss, student, kept(x, SEED, mask_ratio).numpy())
        apart = ((y - teacher) ** 2).sum() / len(y)
        return fd * apart + ctr * contrast(y, teacher, groups, patch, pool, tau)

    def given(self, student):
        return dict(seed=SEED)

    def test_never_negative_and_finite(self):
        for scale in (1e-6, 1e-3, 1, 1e3):
            for loss in self.losses:
                pair = random_pair(self.pairs[0], torch.float32, scale)
                value, grad = self.value_and_grad(loss, *pair)
                assert value >= -1e-5 and value.isfinite() and grad.isfinite().all()


def test_positions_are_hidden():
    student, teacher = random_pair(((2, 4, 8, 8), (2, 4, 8, 8)))
    loss = DenseContrastLoss(groups=2, pool=2, mask_ratio=0.75)
    set_up(loss, student, teacher)
    loss(student, teacher, SEED).backward()
    seen = kept(student, SEED, 0.75).bool().expand_as(student)
    assert not student.grad[~seen].any() and student.grad[seen].any()


def test_a_single_group_has_nothing_to_be_told_from():
    x = torch.randn(1, 4, 4, 4)
    assert dense_contrast(x, torch.randn(1, 4, 4, 4), 1, (2, 2), 2, 0.07).item() == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(groups=3), '4 channels cannot be divided into groups=3'),
        (dict(groups=2), r'maps of 8x8 positions have no patch of 4x4 after pooling by 4; lower'),
    ],
)
def test_what_cannot_be_cut(arguments, message):
    x = torch.ones(1, 4, 8, 8)
    with pytest.raises(ValueError, match=message):
        set_up(DenseContrastLoss(**arguments), x, x)(x, x, SEED)


@pytest.mark.parametrize(
    'arguments', [dict(groups=0), dict(pool=0), dict(patch=(4,)), dict(patch=(4, 0)), dict(tau=0)]
)
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DenseContrastLoss(**arguments)
