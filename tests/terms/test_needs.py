"""What losses get from a batch, and losses with modules of their own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import nn

from mmkd_plugin import seeds as run_seeds
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms import Term
from mmkd_plugin.terms.needs import from_batch
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, distiller


@MODELS.register_module()
class BoxedGap(nn.Module):
    """A loss with a learnt module and ground-truth boxes, which notes what it was given."""

    needs = ('boxes', 'image_size')

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.given: list[tuple] = []

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        self.channels = student_channels, teacher_channels
        self.layers.extend(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c))
            for c in teacher_channels
        )

    def forward(self, student, teacher, boxes, image_size):
        self.given.append((boxes, image_size))
        return sum(F.mse_loss(f(s), t) for f, s, t in zip(self.layers, student, teacher))


def gap(**changes) -> dict:
    return dict(gap=dict(tap='neck', loss=dict(type='BoxedGap'), **changes))


def detector(**changes) -> nn.Module:
    return distiller(stock_models.retinanet(), stock_models.retinanet(16), gap(**changes)).train()


@needs_ops
def test_boxes_and_the_size_of_the_padded_images():
    model = detector()
    inputs, samples = batch(model)
    samples[1].gt_instances = samples[1].gt_instances[:0]
    inputs = F.pad(inputs, (0, 32))
    model(inputs, samples, mode='loss')
    boxes, size = model.distill.gap.loss.given[-1]
    assert size == (128, 160) and [tuple(x.shape) for x in boxes] == [(1, 4), (0, 4)]
    assert torch.equal(boxes[0], samples[0].gt_instances.bboxes)


def test_boxes_in_a_class_of_their_own():
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes

    corners = torch.tensor([[1.0, 2.0, 5.0, 7.0]])
    sample = DetDataSample(gt_instances=InstanceData(bboxes=HorizontalBoxes(corners)))
    given = from_batch(torch.zeros(1, 3, 8, 8), [sample], [('distill.t: Loss', ('boxes',))])
    assert type(given['boxes'][0]) is torch.Tensor and torch.equal(given['boxes'][0], corners)


def test_a_segmentor_has_no_boxes():
    line = dict(tap='decode_head.conv_seg', loss=dict(type='BoxedGap'))
    words = (
        r'distill\.gap: BoxedGap needs ground-truth boxes \(`boxes`\); data of this kind has none'
    )
    with pytest.raises(ValueError, match=words):
        distiller(stock_models.fcn(), stock_models.fcn(16), dict(gap=line))


@needs_ops
def test_a_loss_sets_up_modules_for_the_maps_that_it_gets():
    model = detector()
    loss = model.distill.gap.loss
    assert loss.channels == ([32] * 5, [32] * 5)  # behind the connectors
    assert all(int(f[1].num_batches_tracked) == 0 for f in loss.layers) and loss.layers[0].training


@needs_ops
def test_its_modules_learn_and_lie_beside_the_student():
    model = detector()
    inputs, samples = batch(model)
    named = dict(model.named_parameters())
    (weight,) = (p for n, p in named.items() if n == 'distill.gap.loss.layers.0.0.weight')
    model(inputs, samples, mode='loss')['distill.gap.loss'].backward()
    assert weight.grad.any()
    state = model.state_dict()
    assert not [key for key in state if 'distill' in key]
    other = detector()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(copy.deepcopy(state))
    assert torch.equal(other.distill.gap.loss.layers[0][0].weight, weight)


def test_what_a_loss_declares_has_defaults():
    assert LossTraits.of(nn.Module()) == LossTraits((), 'maps', True, True, False)
    traits = LossTraits.of(MODELS.get('PixelWiseLoss')(ignore_index=255))
    assert traits.needs == ('labels',) and traits.compares_probabilities
    assert not LossTraits.of(MODELS.get('SoftTargetLoss')(sigmoid=True)).compares_probabilities


# Seeds --------------------------------------------------------------------------------------------


@MODELS.register_module()
class SeedAsLoss(nn.Module):
    """Gives its seed, and the maps no part but a gradient."""

    needs = ('seed',)

    def forward(self, student, teacher, seed):
        assert seed.dtype == torch.int64 and seed.shape == ()
        return student.double().square().sum() + seed * 2.0**-63


def seed_of(name: str = 'a') -> float:
    term = Term.from_config(name, dict(tap='x', loss=dict(type='SeedAsLoss')), ['teacher'])
    maps = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    term.connect(*maps)
    return term(*maps).item()


def test_a_seed_is_another_one_in_each_iteration_process_term_and_run(counters, monkeypatch):
    counters.update_info('seed', 0)
    counters.update_info('iter', 0)
    seeds = [seed_of(), seed_of('b')]
    assert seed_of() == seeds[0]
    counters.update_info('iter', 1)
    seeds.append(seed_of())
    monkeypatch.setattr(run_seeds, 'get_rank', lambda: 1)
    seeds.append(seed_of())
    counters.update_info('seed', 1)
    seeds.append(seed_of())
    assert len(set(seeds)) == 5 and 0 < min(seeds) < max(seeds) < 1
