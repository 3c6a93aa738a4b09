"""Runs at the edge: one image in a batch, frozen stages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn

from tests import stock_models
from tests.fuzz import models
from tests.runs import config, needs_ops
from tests.stock_models import build, cwd

pytestmark = pytest.mark.usefixtures('own_globals', 'counters')

KINDS: dict[str, Callable[[], dict]] = dict(
    segmentor=models.of_a_segmentor,
    detector=models.of_a_detector,
    several=models.with_several_teachers,
    own=models.with_a_self_teacher,
    explanations=models.with_explanations,
)


def losses_of(model: nn.Module, settings: dict, data: Path, images: int) -> dict[str, Tensor]:
    """The losses of a batch of real images."""
    cfg = config(settings, data, Path('unused'), 1)
    init_default_scope(cfg.default_scope)
    found = DATASETS.build(cfg.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([found[i] for i in range(images)]), True)
    return model(batch['inputs'], batch['data_samples'], mode='loss')


@pytest.mark.parametrize(
    'kind', [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in KINDS]
)
def test_one_image_in_a_batch(kind: str, data: Path) -> None:
    settings = KINDS[kind]()
    model = build(copy.deepcopy(settings)).train()
    value, _ = model.parse_losses(losses_of(model, settings, data, 1))
    value.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(value) and grads and all(torch.isfinite(g).all() for g in grads)


def test_frozen_stages_stay_as_they_are(data: Path) -> None:
    student = stock_models.fcn(classes=3)
    student['backbone']['frozen_stages'] = 2
    settings = models.distiller(
        student,
        models.online(stock_models.fcn(16, classes=3)),
        dict(cwd=dict(tap='backbone.layer4', loss=cwd())),
    )
    model = build(copy.deepcopy(settings)).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    value, _ = model.parse_losses(losses_of(model, settings, data, 2))
    value.backward()
    optimizer.step()
    frozen = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'backbone.layer2')
    for name, after in model.state_dict().items():
        assert torch.equal(after, before[name]) == name.startswith(frozen), name
