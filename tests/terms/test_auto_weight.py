"""Automatic weights: a set share of the task loss's gradient at the tap, whatever the term."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import TapReader, Taps, as_list
from mmkd_plugin.terms.auto_weight import EVERY, FIRST, AutoWeight, auto_share
from mmkd_plugin.terms.gradient_sizes import Sizes
from tests import stock_models
from tests.stock_models import batch, calls_of, distiller

pytestmark = pytest.mark.usefixtures('counters')

SEG = stock_models.pspnet(), stock_models.pspnet(16)
DET = stock_models.retinanet(), stock_models.retinanet(16)


def line(tap: str | list[str], kind: str, weight: Any = 'auto', **others: Any) -> dict:
    arguments = {key: others.pop(key) for key in ('tau', 'pool') if key in others}
    return dict(
        tap=tap, loss=dict(type=f'mmkd_plugin.{kind}', loss_weight=weight, **arguments), **others
    )


def shares(model: nn.Module, name: str, tap: str | list[str]) -> list[float]:
    """The sizes of a term's gradient over those of the task loss, in a step of training."""
    taps, term = Taps.parse(tap), model.distill[name]
    inputs, samples = batch(model)
    places, calls = model._run_student.run.places, calls_of(term)
    with TapReader(model.student, taps, places=places, on_path=list(taps)) as reader:
        losses = model.train()(inputs, samples, mode='loss')
    maps = as_list(taps.of({one: reader.read(one) for one in taps}))
    task = model.parse_losses({k: v for k, v in losses.items() if not k.startswith('distill')})[0]
    loss, learnt = losses[f'distill.{name}.loss'], maps
    if term.student_view.kind == 'maps':  # one level of a pyramid may be made from another one
        student, teacher, *rest = calls[-1][0]
        learnt = [x.detach().requires_grad_() for x in as_list(student)]
        loss = term(learnt if len(learnt) > 1 else learnt[0], teacher, *rest)
        loss = loss * term.schedule.factor(MessageHub.get_current_instance().get_info('iter', 0))
    sizes = [
        [g.float().norm() for g in torch.autograd.grad(x, of, retain_graph=True)]
        for x, of in ((loss, learnt), (task, maps))
    ]
    return [float(ours / theirs) for ours, theirs in zip(*sizes)]


ONE_WEIGHT = [
    (SEG, line('decode_head.conv_seg', 'ChannelWiseLoss', tau=4), 2.5),
    (SEG, line('decode_head.conv_seg', 'PixelWiseLoss', dict(auto=0.01)), 0.01),
    (SEG, line('decode_head.bottleneck', 'AttentionLoss', dict(auto=2)), 2),
    (SEG, line('decode_head.bottleneck', 'AttentionLoss'), 0.5),
    (SEG, line('decode_head.bottleneck', 'HintLoss'), 2.5),
    (SEG, line('backbone.layer2', 'NeuronSelectivityLoss'), 0.5),
    (SEG, line('backbone.layer4', 'ActivationBoundaryLoss'), 2.5),
    (SEG, line('decode_head.conv_seg', 'GradientAttentionLoss'), 2.5),
    (DET, line('neck[1]', 'PairWiseLoss', pool=4), 0.5),
    (SEG, line('decode_head.bottleneck', 'TokenRelationLoss'), 0.5),
]


@pytest.mark.parametrize(('models', 'term', 'share'), ONE_WEIGHT)
def test_the_term_has_its_share_from_the_first_iteration_on(models, term, share):
    model = distiller(*models, dict(t=term))
    (found,) = shares(model, 't', term['tap'])
    assert found == pytest.approx(share, rel=1e-3)


def test_an_explanation_has_its_share_at_the_explained_map():
    explainer = dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg')
    term = line('decode_head.bottleneck', 'ExplanationLoss', explainer=explainer)
    (found,) = shares(distiller(*SEG, dict(t=term)), 't', term['tap'])
    assert found == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize('kind', ['PixelWiseLoss', 'HintLoss'])
def test_each_map_of_several_has_a_weight(kind):
    model = distiller(*DET, dict(t=line('neck', kind)))
    assert shares(model, 't', 'neck') == pytest.approx([2.5] * 5, rel=1e-3)
    assert len(set(model.distill['t'].auto.weight.tolist())) == 5


def test_maps_that_are_compared_together_have_one_weight():
    taps = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3']
    model = distiller(*SEG, dict(t=line(taps, 'FSPLoss')))
    shares(model, 't', taps)
    assert model.distill['t'].auto.weight.shape == (1,)


def test_terms_at_one_tap_each_have_their_share():
    tap = 'decode_head.conv_seg'
    terms = dict(a=line(tap, 'ChannelWiseLoss'), b=line(tap, 'PixelWiseLoss', dict(auto=0.7)))
    for name, share in (('a', 2.5), ('b', 0.7)):
        assert shares(distiller(*SEG, terms), name, tap) == pytest.approx([share], rel=1e-3)


def test_a_schedule_scales_the_share(counters):
    term = line('decode_head.conv_seg', 'ChannelWiseLoss', schedule=dict(ramp=4))
    model = distiller(*SEG, dict(t=term))
    counters.update_info('iter', 1)
    assert shares(model, 't', term['tap']) == pytest.approx([2.5 / 4], rel=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_finds_the_same_weight(dtype):
    term = line('decode_head.bottleneck', 'ActivationBoundaryLoss')  # a sum: 1e4 and more
    weights = []
    for enabled in (False, True):
        model = distiller(*SEG, dict(t=term)).train()
        with torch.autocast('cpu', dtype, enabled=enabled):
            model(*batch(model), mode='loss')
        weights.append(model.distill['t'].auto.weight.item())
    assert weights[1] == pytest.approx(weights[0], rel=0.1)


def test_the_other_numbers_of_a_step_are_those_without_measurements():
    """The task loss, and the gradient of a term with a plain weight, are bit for bit the same."""
    found = []
    for weight in (dict(auto=2.5), None):
        term = line('decode_head.conv_seg', 'ChannelWiseLoss', weight or 1.0)
        model = distiller(*SEG, dict(t=term)).train()
        if weight is None:
            model.distill['t'].watch.blind = True
        losses = model(*batch(model), mode='loss')
        found.append({k: v for k, v in losses.items() if not k.startswith('distill')})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_weights_follow_slowly():
    auto = AutoWeight(share=0.5)
    auto.for_maps(2)
    sizes = [
        Sizes(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]), [True] * 2, torch.zeros(())),
        Sizes(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 2.0]), [True] * 2, torch.zeros(())),
    ]
    auto.update(sizes[0])
    assert auto.weight.tolist() == [1.0, 0.25]
    # the term's size was measured with the weight of 1, a size of 0 tells nothing
    auto.update(sizes[1])
    assert auto.weight.tolist() == pytest.approx([0.5 * 3 / 1, 0.25])


def test_measurements_become_rare():
    auto = AutoWeight()
    due = []
    for auto.steps in range(3 * EVERY):
        due.append(auto.due())
    assert sum(due) == FIRST + 2 and due[EVERY] and due[2 * EVERY]


def test_what_is_not_finite_changes_nothing():
    auto = AutoWeight()
    auto.for_maps(1)
    size = torch.tensor([1.0])
    auto.update(Sizes(size, size, [True], size))
    for term, task in ((float('nan'), 1.0), (1.0, float('inf')), (0.0, 1.0), (1.0, 0.0)):
        auto.update(Sizes(torch.tensor([term]), torch.tensor([task]), [True], size))
    assert auto.weight.tolist() == pytest.approx([2.5])


def test_it_is_saved_beside_the_student_and_comes_back():
    terms = dict(t=line('neck', 'ChannelWiseLoss'))
    model = distiller(*DET, terms).train()
    for _ in range(2):
        model(*batch(model), mode='loss')
    state = copy.deepcopy(model.state_dict())
    other = distiller(*DET, terms).train()
    other.load_state_dict(state)
    ours, theirs = model.distill['t'].auto, other.distill['t'].auto
    assert theirs.steps == 2 == ours.steps
    for name in ('weight', 'task', 'term', 'measured'):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    losses = [one(*batch(one), mode='loss')['distill.t.loss'] for one in (model, other)]
    assert torch.equal(*losses)


def test_the_log_has_weight_and_share():
    hub = MessageHub.get_current_instance()
    model = distiller(*SEG, dict(t=line('decode_head.conv_seg', 'ChannelWiseLoss'))).train()
    model(*batch(model), mode='loss')
    assert hub.get_scalar('train/distill.t.share').current() == pytest.approx(2.5)
    weight = hub.get_scalar('train/distill.t.weight').current()
    assert weight == pytest.approx(model.distill['t'].auto.weight.item())


def test_the_plan_says_auto(log):
    distiller(*SEG, dict(t=line('decode_head.conv_seg', 'ChannelWiseLoss', dict(auto=0.5))))
    (plan,) = [text for text in log.messages if 'ChannelWiseLoss' in text]
    assert 'loss_weight=auto' in plan and "has 0.5 of the task's gradient" in plan


@MODELS.register_module(name='DeafLoss', force=True)
class DeafLoss(nn.Module):
    """A loss that does not read its weight in ``forward``."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.factor = loss_weight

    def forward(self, student, teacher):
        return self.factor * (student - teacher).square().mean()


@pytest.mark.parametrize(
    ('term', 'others', 'message'),
    [
        (
            line('decode_head.conv_seg', 'ChannelWiseLoss', 'Auto'),
            {},
            "^distill.t.loss.loss_weight must be a number, 'auto' or dict.auto=2.5., got 'Auto'",
        ),
        (
            line('decode_head.conv_seg', 'ChannelWiseLoss', dict(auto=-1)),
            {},
            '^distill.t.loss.loss_weight.auto must be .* above 0 and at most 1000, got -1',
        ),
        (
            line('decode_head.conv_seg', 'ChannelWiseLoss', dict(share=1)),
            {},
            "^distill.t.loss.loss_weight must be a number, 'auto' or dict.auto=2.5., got ",
        ),
        (
            dict(tap='decode_head.conv_seg', loss=dict(type='DeafLoss', loss_weight='auto')),
            {},
            '^distill.t.loss.loss_weight: DeafLoss does not read its `loss_weight` in `forward`',
        ),
        (
            line('decode_head.conv_seg', 'ChannelWiseLoss'),
            dict(task=dict(loss_weight=0)),
            "^distill.t.loss.loss_weight='auto' is a share of the task loss.s gradient, and the "
            'task loss is off',
        ),
    ],
)
def test_mistakes_are_named_at_build_time(term, others, message):
    with pytest.raises(ValueError, match=message):
        distiller(*SEG, dict(t=term), **others)


def test_a_task_loss_that_is_off_when_the_term_comes_on_is_named(counters):
    term = line('decode_head.conv_seg', 'ChannelWiseLoss')
    model = distiller(*SEG, dict(t=term), task=dict(schedule=dict(start=10))).train()
    with pytest.raises(ValueError, match='the task loss is off when the term comes on'):
        model(*batch(model), mode='loss')


def test_a_task_loss_that_goes_off_later_leaves_the_weight(counters):
    term = line('decode_head.conv_seg', 'ChannelWiseLoss')
    model = distiller(*SEG, dict(t=term), task=dict(schedule=dict(stop=1))).train()
    model(*batch(model), mode='loss')
    before = model.distill['t'].auto.weight.clone()
    counters.update_info('iter', 1)
    losses = model(*batch(model), mode='loss')
    assert torch.equal(model.distill['t'].auto.weight, before)
    assert set(losses) == {'distill.t.loss'} and losses['distill.t.loss'] > 0


def test_a_tap_that_the_task_loss_does_not_reach_is_named():
    student, teacher = copy.deepcopy(SEG)
    for model in (student, teacher):
        width = model['decode_head']['in_channels']
        model['auxiliary_head'] = dict(
            type='FCNHead', in_channels=width, in_index=3, channels=4, num_convs=1,
            num_classes=5, concat_input=False, loss_decode=dict(type='CrossEntropyLoss'),
        )  # fmt: skip
    model = distiller(student, teacher, dict(t=line('auxiliary_head.conv_seg', 'ChannelWiseLoss')))
    model.train()
    model.student.auxiliary_head.loss_by_feat = lambda logits, _: dict(
        loss_none=logits.sum().detach()
    )
    with pytest.raises(ValueError, match=r"does not depend on 'auxiliary_head.conv_seg'"):
        model(*batch(model), mode='loss')


def test_what_asks_for_a_share():
    assert auto_share((1.0, 2.0), 'here') is None
    assert auto_share(dict(auto=1), 'here') == 1.0
