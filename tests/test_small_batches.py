"""Batches at the edge: one image, another size, half precision; frozen stages."""

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


each_kind = pytest.mark.parametrize(
    'kind', [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in KINDS]
)


def losses_of(
    model: nn.Module, settings: dict, data: Path, images: int, scale: float = 1.0
) -> dict[str, Tensor]:
    """The losses of a batch of real images, with the same random numbers each time."""
    torch.manual_seed(0)
    cfg = config(settings, data, Path('unused'), 1)
    init_default_scope(cfg.default_scope)
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline.insert(-1, dict(type='Resize', scale_factor=scale, keep_ratio=True))
    found = DATASETS.build(dataset)
    batch = model.data_preprocessor(pseudo_collate([found[i] for i in range(images)]), True)
    return model(batch['inputs'], batch['data_samples'], mode='loss')


def assert_learns(model: nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """The sum of the losses, and all gradients, are finite; returns the sum."""
    value, _ = model.parse_losses(losses)
    value.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(value) and grads and all(torch.isfinite(g).all() for g in grads)
    return value.detach()


@each_kind
def test_one_image_in_a_batch(kind: str, data: Path) -> None:
    settings = KINDS[kind]()
    model = build(copy.deepcopy(settings)).train()
    assert_learns(model, losses_of(model, settings, data, 1))


@each_kind
def test_another_size_and_half_precision(kind: str, data: Path) -> None:
    """A batch of another size costs as if it came first; bfloat16 costs about the same."""
    settings = KINDS[kind]()
    model = build(copy.deepcopy(settings)).train()
    fresh, half = copy.deepcopy(model), copy.deepcopy(model)
    assert_learns(model, losses_of(model, settings, data, 2))
    later = losses_of(model, settings, data, 2, scale=1.5)
    first = losses_of(fresh, settings, data, 2, scale=1.5)
    expected = assert_learns(fresh, first)
    for name, value in first.items():
        torch.testing.assert_close(later[name], value, msg=lambda text, n=name: f'{n}: {text}')
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(half, settings, data, 2, scale=1.5)
    assert all(x.dtype == torch.float32 for n, x in losses.items() if n.startswith('distill'))
    torch.testing.assert_close(assert_learns(half, losses), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ('kind', 'tap'),
    [
        ('fcn', 'backbone.layer4'),
        pytest.param('retinanet', 'neck', marks=needs_ops),
    ],
)
def test_frozen_stages_stay_as_they_are(kind: str, tap: str, data: Path) -> None:
    student, teacher = (getattr(stock_models, kind)(width, classes=3) for width in (8, 16))
    student['backbone']['frozen_stages'] = 2
    connector = models.own('ConvConnector')
    terms = dict(cwd=dict(tap=tap, loss=cwd(), connector=connector))
    settings = models.distiller(student, models.online(teacher), terms)
    model = build(copy.deepcopy(settings)).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    value, _ = model.parse_losses(losses_of(model, settings, data, 2))
    value.backward()
    optimizer.step()
    frozen = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'backbone.layer2')
    for name, after in model.state_dict().items():
        assert torch.equal(after, before[name]) == name.startswith(frozen), name
