"""Two processes learn what one learns from a batch of twice the size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn

from tests import ddp
from tests.fuzz import models
from tests.runs import config, needs_ops
from tests.stock_models import build, cwd

pytestmark = pytest.mark.usefixtures('own_globals')

TAP = 'backbone.conv2'


def term(tap: str, loss: dict, **others: Any) -> dict:
    return dict(tap=tap, loss=loss, **others)


def of_a_segmentor(**terms: dict) -> dict:
    return models.distiller(models.segmentor(4), models.online(models.segmentor(8)), terms)


def of_a_detector(task: dict, **terms: dict) -> dict:
    teacher = models.online(models.detector(8))
    return models.distiller(models.detector(4), teacher, terms, task=task)


#: Distillers, with each loss that gathers from all processes.
KINDS: dict[str, Callable[[], dict]] = {
    'segmentor': lambda: of_a_segmentor(
        scores=term(models.SCORES, cwd(tau=4.0)),
        hint=term(TAP, models.own('HintLoss'), connector=models.own('ConvConnector')),
    ),
    'distances': lambda: of_a_segmentor(
        rkd=term(TAP, models.own('RKDDistanceLoss', embed='pool', gather=True))
    ),
    'angles': lambda: of_a_segmentor(
        rkd=term(TAP, models.own('RKDAngleLoss', embed='pool', gather=True))
    ),
    'a queue': lambda: of_a_segmentor(
        queue=term(
            TAP, models.own('TokenRelationLoss', queue=7), connector=models.own('ConvConnector')
        )
    ),
    # RetinaNet divides its own losses by the boxes in the images of each process.
    'detector': lambda: of_a_detector(
        dict(loss_weight=0),
        neck=term('neck', cwd(tau=4.0), connector=models.own('ConvConnector')),
        soft=term('bbox_head.retina_cls', models.own('SoftTargetLoss', sigmoid=True)),
    ),
}


def distiller(model: dict) -> nn.Module:
    """A Distiller whose norms keep their statistics, which each process has of its own images."""
    torch.manual_seed(0)
    built = build(copy.deepcopy(model)).double().train()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return built


def steps(
    model: nn.Module, run: Callable[..., dict], batches: list[Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the last batch, and the gradients of all of them together."""
    for batch in batches:
        data = model.data_preprocessor(batch, True)
        losses = run(data['inputs'].double(), data['data_samples'], mode='loss')
        value, _ = model.parse_losses(losses)
        value.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return value.detach(), grads


@pytest.mark.parametrize(
    'kind', [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in KINDS]
)
def test_as_one_with_twice_the_batch(kind: str, data: Path, tmp_path: Path) -> None:
    model = KINDS[kind]()
    cfg = config(model, data, tmp_path, 1)
    init_default_scope(cfg.default_scope)
    images = DATASETS.build(cfg.train_dataloader.dataset)

    def batches(places: slice) -> list[Any]:
        return [
            pseudo_collate([images[number] for number in numbers[places]])
            for numbers in ([0, 1, 2, 3], [4, 5, 0, 1])
        ]

    def work(rank: int) -> tuple[Tensor, dict[str, Tensor]]:
        ours = distiller(model)
        wrapped = nn.parallel.DistributedDataParallel(ours)
        return steps(ours, wrapped, batches(slice(2 * rank, 2 * rank + 2)))

    one = distiller(model)
    value, grads = steps(one, one, batches(slice(None)))
    results = ddp.forked(work, tmp_path)
    torch.testing.assert_close(sum(found for found, _ in results) / 2, value)
    for _, found in results:
        for name, grad in found.items():
            expected = grads.get(name, torch.zeros_like(grad))
            torch.testing.assert_close(grad, expected, msg=lambda text, n=name: f'{n}: {text}')
