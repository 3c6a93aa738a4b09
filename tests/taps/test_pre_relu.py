"""``@pre_relu`` taps: the input of the ReLU at the end of a module, and the norm before it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmkd_plugin.taps import Tap, TapError, TapReader
from mmkd_plugin.taps.dry_run import read_once
from tests import stock_models
from tests.stock_models import build

STAGES = [f'backbone.layer{n}@pre_relu' for n in (1, 2, 3, 4)]


@pytest.fixture(params=['pspnet', 'bottlenecks', 'retinanet'])
def model(request):
    torch.manual_seed(0)
    if request.param == 'bottlenecks':
        config = stock_models.pspnet()
        config['backbone']['depth'] = 50
        config['decode_head']['in_channels'] = 256
        return build(config).eval()
    return build(getattr(stock_models, request.param)()).eval()


def seen(model, texts, **kwargs):
    taps = [Tap.parse(text) for text in texts]
    inputs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def forward():
        return model.extract_feat(inputs)

    run = read_once(model, taps, forward)
    with TapReader(model, taps, run.in_place, places=run.places, **kwargs) as reader:
        forward()
    return run, reader, taps


def test_the_relu_of_it_is_what_the_stage_gives(model):
    outputs = [f'backbone.layer{n}' for n in (1, 2, 3, 4)]
    run, reader, taps = seen(model, [*STAGES, *outputs])
    for before, after in zip(taps[:4], taps[4:], strict=True):
        assert (reader.read(before) < 0).any()
        assert torch.equal(reader.read(before).relu(), reader.read(after))
    assert {place.call for place in run.places[taps[0]]} == {
        reader.calls(run.places[taps[0]][0]) - 1
    }


def test_in_place_and_not_are_the_same(model):
    _, reader, taps = seen(model, STAGES)
    expected = [reader.read(tap) for tap in taps]
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert any(module.inplace for module in relus)
    for module in relus:
        module.inplace = False
    run, reader, _ = seen(model, STAGES)
    assert not run.in_place
    for tap, value in zip(taps, expected, strict=True):
        assert torch.equal(reader.read(tap), value)


def test_only_the_last_call_is_kept_and_copied(model):
    run, reader, taps = seen(model, STAGES)
    for tap in taps:
        (place,) = run.places[tap]
        assert place in run.in_place
        assert len(reader._values[place]) == 1 and reader.calls(place) > 1


def test_the_norm_that_feeds_it(model):
    run, _, taps = seen(model, STAGES)
    last = 'bn3' if hasattr(model.backbone.layer1[0], 'conv3') else 'bn2'
    assert [run.norms[tap] for tap in taps] == [
        [f'backbone.layer{n}.{len(getattr(model.backbone, f"layer{n}")) - 1}.{last}']
        for n in (1, 2, 3, 4)
    ]


def test_all_maps_of_a_backbone():
    model = build(stock_models.fcn()).eval()
    run, reader, (tap, third) = seen(model, ['backbone@pre_relu', 'backbone[2]@pre_relu'])
    assert [x.shape[1] for x in reader.read(tap)] == [8, 16, 32, 64]
    assert torch.equal(reader.read(third), reader.read(tap)[2])
    assert len(run.norms[tap]) == 4 and run.norms[third] == run.norms[tap][2:3]


def test_conv_modules_end_with_one_too():
    model = build(stock_models.pspnet()).eval()
    taps = [Tap.parse('decode_head.bottleneck@pre_relu'), Tap.parse('decode_head.bottleneck')]
    inputs = torch.rand(2, 3, 64, 64)

    def forward():
        return model(inputs)

    run = read_once(model, taps, forward)
    with TapReader(model, taps, run.in_place, places=run.places) as reader:
        forward()
    assert torch.equal(reader.read(taps[0]).relu(), reader.read(taps[1]))
    assert run.norms[taps[0]] == ['decode_head.bottleneck.bn']


class Residual(nn.Module):
    """Adds to a new tensor, so that the sum is not what the batch norm returned."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.downsample = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()

    def forward(self, x):
        out = self.bn(self.conv(x))
        return self.relu(out + self.downsample(x))


@pytest.mark.parametrize('text', ['0@pre_relu', '0.relu@input'])
def test_a_norm_behind_an_addition_out_of_place(text):
    model = nn.Sequential(Residual()).eval()
    run = read_once(model, [Tap.parse(text)], lambda: model(torch.rand(1, 3, 4, 4)))
    assert run.norms[Tap.parse(text)] == ['0.bn']


def test_a_module_that_ends_otherwise_is_refused():
    model = build(stock_models.retinanet()).eval()
    with pytest.raises(TapError, match=r"'neck' gives does not come out of a ReLU .* tap 'neck'"):
        seen(model, ['neck@pre_relu'])


def test_no_norm_is_no_name():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    tap = Tap.parse('1@pre_relu')
    run = read_once(model, [tap], lambda: model(torch.rand(1, 3, 4, 4)))
    assert run.norms[tap] == ['']


def test_with_activation_checkpointing_the_count_is_the_same():
    config = stock_models.pspnet()
    config['backbone']['with_cp'] = True
    student = stock_models.distiller(
        config,
        stock_models.pspnet(16),
        dict(t=dict(tap=STAGES, loss=dict(type='mmkd_plugin.HintLoss'))),
    ).train()
    inputs, samples = stock_models.batch(student)
    loss = student(inputs, samples, mode='loss')['distill.t.loss']
    loss.backward()
    assert student.student.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0
