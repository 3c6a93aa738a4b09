"""The state dict of a Distiller: the student's own, with the rest beside it."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import ExponentialMovingAverage

from mmkd_plugin.checkpoint import distillation_state
from tests import stock_models
from tests.stock_models import batch, build, distiller
from tests.test_distiller import FEATURES, LOGITS, step

pytestmark = pytest.mark.usefixtures('counters')


def test_the_state_dict_is_the_students_and_the_rest_lies_beside_it():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    state = model.state_dict()
    alone = build(stock_models.pspnet())
    assert list(state) == list(alone.state_dict())
    alone.load_state_dict(state, strict=True)
    beside = distillation_state(state)['state']
    assert set(beside) == {
        'distill.cwd.connectors.0.weight',
        'distill.cwd.connectors.0.bias',
    }
    for path, metadata in alone.state_dict()._metadata.items():
        if path:
            assert state._metadata[path] == metadata


def test_loading_brings_the_connectors_back():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    other = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES, seed=1)
    assert not torch.equal(*(m.distill.cwd.connectors[0].weight for m in (model, other)))
    other.load_state_dict(model.state_dict(), strict=True)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_plain_student_is_loaded_and_connectors_stay():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    connector = model.distill.cwd.connectors[0].weight.clone()
    torch.manual_seed(9)
    alone = build(stock_models.pspnet())
    model.load_state_dict(alone.state_dict(), strict=True)
    assert torch.equal(model.backbone.layer1[0].conv1.weight, alone.backbone.layer1[0].conv1.weight)
    assert torch.equal(model.distill.cwd.connectors[0].weight, connector)


def test_an_average_of_the_weights_saves_and_loads_plain_keys():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    for update_buffers in (False, True):
        ema = ExponentialMovingAverage(model, update_buffers=update_buffers)
        ema.update_parameters(model)
        step(model.train(), *batch(model))
        ema.update_parameters(model)
        state = ema.state_dict()
        assert {key for key in state if key != 'steps'} == {
            f'module.{k}' for k in model.state_dict()
        }
        again = ExponentialMovingAverage(model, update_buffers=update_buffers)
        again.load_state_dict(state, strict=True)
        for ours, theirs in zip(ema.module.parameters(), again.module.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_weights_of_another_student_are_refused():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    other = distiller(stock_models.segformer(), stock_models.pspnet(16), LOGITS)
    with pytest.raises(ValueError, match='another student'):
        model.load_state_dict(other.state_dict(), strict=False)
    with pytest.raises(ValueError, match='weights'):
        model.load_state_dict(dict(nothing=torch.zeros(1)), strict=False)
