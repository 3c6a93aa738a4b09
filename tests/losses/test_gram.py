from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import LossContract, random_pair
from test_cross_image import rows_of

from mmkd_plugin.losses import GramLoss, PairWiseLoss
from mmkd_plugin.losses.numerics import relations


class TestGramLoss(LossContract):
    name = 'GramLoss'
    variants = (dict(), dict(negatives='keep'), dict(negatives='teacher'))
    pairs = (
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((1, 2, 5, 3), (1, 2, 5, 3)),
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 4, 1, 6), (1, 2, 1, 6)),
    )
    same_channels = False

    def test_identical_maps_cost_nothing(self):
        for negatives in ('clip', 'keep'):  # 'teacher' leaves the student's negative cosines
            student, _ = random_pair(((2, 3, 4, 4),) * 2, torch.float32)
            value, grad = self.value_and_grad(
                GramLoss(negatives=negatives), student, student.detach().clone()
            )
            assert value.item() == pytest.approx(0, abs=1e-6) and grad.abs().max() < 1e-6

    @staticmethod
    def reference(student, teacher, negatives='clip'):
        gaps = []
        for s, t in zip(student, teacher):
            s, t = rows_of(s), rows_of(t)
            for i in range(len(s)):
                for j in range(len(s)):
                    a, b = s[i] @ s[j], t[i] @ t[j]
                    a = max(a, 0) if negatives == 'clip' else a
                    gaps.append(a - (b if negatives == 'keep' else max(b, 0)))
        return float(np.mean(np.square(gaps)))


def test_with_its_negatives_it_is_the_pair_wise_loss():
    pair = random_pair(((2, 3, 4, 5), (2, 6, 4, 5)))
    expected = PairWiseLoss(pool=None)(*pair)
    torch.testing.assert_close(GramLoss(negatives='keep')(*pair), expected)


@pytest.mark.parametrize('negatives', ['clip', 'keep', 'teacher'])
def test_rows_in_many_parts_give_the_same(negatives, monkeypatch):
    pair = random_pair(((3, 4, 5, 7), (3, 6, 5, 7)))
    loss = GramLoss(negatives=negatives)
    value = loss(*pair)
    (slope,) = torch.autograd.grad(value, pair[0])
    monkeypatch.setattr(relations, 'ROOM', 1000)
    parts = loss(*pair)
    torch.testing.assert_close(parts, value)
    torch.testing.assert_close(torch.autograd.grad(parts, pair[0])[0], slope)


def test_one_position_teaches_nothing():
    assert 'single position' in GramLoss().teaches_nothing(3, (1, 1))
    assert GramLoss().teaches_nothing(3, (1, 2)) is GramLoss().teaches_nothing(3) is None


def test_negatives_are_checked():
    with pytest.raises(ValueError, match="negatives must be one of 'clip', 'keep', 'teacher'"):
        GramLoss(negatives='drop')
