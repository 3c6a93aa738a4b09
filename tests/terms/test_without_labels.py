"""The part of a step with images without labels: which terms are on, and what losses are."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmkd_plugin.terms.without_labels import together
from tests.runs import needs_ops
from tests.unlabelled.runs import distilled


def test_a_loss_is_the_mean_over_all_images_that_have_it():
    one, four = torch.tensor(1.0), torch.tensor(4.0)
    labelled = {'loss_cls': [one, one], 'acc': one, 'distill.a.loss': one, 'distill.b.loss': four}
    others = {'loss_cls': four, 'acc': four, 'distill.a.loss': four, 'pseudo_labels.pixels': one}
    found = {key: float(value) for key, value in together(labelled, others, 2, 1).items()}
    assert found == {
        'loss_cls': pytest.approx((2 * 2 + 4) / 3),
        'acc': 1,
        'distill.a.loss': 2,
        'distill.a.unlabelled': 4,
        'distill.b.loss': 4,  # needs labels
        'pseudo_labels.pixels': 1,
    }


def test_what_is_only_logged_is_not_added_up():
    one = torch.tensor(1.0)
    key = 'distill.my_loss.loss'
    assert set(together({key: one}, {key: one}, 1, 1)) == {key}


FGD = dict(fgd=dict(tap='neck', loss=dict(type='mmkd_plugin.FocalGlobalLoss')))
CWD = distilled('mmdet', None)['distill']
AUTO = dict(cwd=dict(tap='neck', loss=dict(type='mmkd_plugin.ChannelWiseLoss', loss_weight='auto')))


@needs_ops
@pytest.mark.parametrize(
    ('settings', 'distill', 'message'),
    [
        (dict(), FGD, 'no term can learn from images without labels: distill.fgd: FocalGlobalLoss'),
        (
            dict(only=True),
            {**CWD, **FGD},
            'unlabelled.only: there are no labels, and distill.fgd: Focal',
        ),
        (dict(only=True), AUTO, "distill.cwd.loss.loss_weight='auto' is a share of the task loss"),
        (
            dict(pseudo_labels=dict(threshold=0.5, teacher='big')),
            CWD,
            "unlabelled.pseudo_labels has teacher='big'; the teachers are: teacher",
        ),
    ],
)
def test_nothing_to_learn_is_refused(settings, distill, message):
    model = distilled('mmdet', dict(dataset='more', **settings), distill=distill)
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(ValueError, match=message):
        MODELS.build(model)
