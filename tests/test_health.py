"""Losses that cannot be trained on."""

from __future__ import annotations

import math

import pytest
import torch

from mmkd_plugin.health import as_number, first_unusable

GOOD = torch.tensor(1.0)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('form', ['scalar', 'map', 'list'])
def test_the_first_unusable_loss(bad, form):
    value = torch.tensor(bad)
    value = dict(scalar=value, map=torch.stack([GOOD, value]), list=[GOOD, value])[form]
    assert first_unusable(dict(loss_a=GOOD, loss_b=value, loss_c=value)) == 'loss_b'


@pytest.mark.parametrize(
    'losses', [{}, dict(loss=GOOD), dict(loss=[GOOD, GOOD]), dict(loss=GOOD, acc=GOOD * math.nan)]
)
def test_losses_that_can_be_trained_on(losses):
    assert first_unusable(losses) is None


def test_a_loss_as_mmengine_adds_it_up():
    assert as_number([torch.tensor([1.0, 3.0]), GOOD]) == 3.0
