"""Two processes learn what one learns from a batch of twice the size."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import digit_version
from torch import Tensor, nn

from benchmarks.cases import cases
from mmkd_plugin.losses.numerics.memory import ClassMemory
from mmkd_plugin.running.sharding import OLDEST
from tests import ddp, stock_models
from tests.fuzz import models
from tests.runs import DET_CLASSES, config, needs_ops
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


def rtmdet(width: int, classes: int) -> dict:
    return dict(stock_models.rtmdet(width, classes), use_syncbn=False)


def assigned(kind: Callable[..., dict], tap: str | list[str]) -> dict:
    """A detector with a term that needs what its assigner found."""
    student, teacher = (kind(width, classes=len(DET_CLASSES)) for width in (4, 8))
    terms = dict(bckd=term(tap, models.own('ProtocolLoss')))
    return models.distiller(student, models.online(teacher), terms)


#: Distillers, with each loss that gathers from all processes. `MemoryContrastLoss` draws its pixels
#: in each process by itself, so that its memory is compared below, and not its value.
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
    'an automatic weight': lambda: of_a_segmentor(
        scores=term(models.SCORES, cwd(tau=4.0, loss_weight='auto')),
        hint=term(
            TAP,
            models.own('HintLoss', loss_weight='auto'),
            connector=models.own('ConvConnector'),
        ),
    ),
    # These heads take the mean number of positives of all processes, and so do the terms.
    'ATSS': lambda: assigned(stock_models.atss, ['bbox_head[0]', 'bbox_head[1]']),
    'FCOS': lambda: assigned(stock_models.fcos, ['bbox_head[0]', 'bbox_head[1]']),
    'GFL': lambda: assigned(stock_models.gfl, 'bbox_head'),
    'RTMDet': lambda: assigned(rtmdet, 'bbox_head'),
    # Losses with layers of their own, which DDP averages too; nothing is drawn here. That of FBKD
    # is left out: the root of a sum over the batch is another one for each half of it.
    'a generator': lambda: of_a_segmentor(
        mgd=term(TAP, models.own('MaskedGenerationLoss', mask_ratio=0.0)),
    ),
    'a contrast': lambda: of_a_segmentor(
        af_dcd=term(
            TAP,
            models.own(
                'DenseContrastLoss', groups=4, patch=(2, 2), pool=2, mask_ratio=0.0, fd=1, ctr=1
            ),
        ),
    ),
    'levels fused': lambda: of_a_segmentor(
        review=term(
            ['backbone.conv1', TAP],
            models.own('ReviewLoss'),
            connector=models.own('ReviewFusion', mid_channels=4),
        ),
    ),
    'contexts': lambda: of_a_detector(
        dict(loss_weight=0),
        fgd=term('neck', models.own('FocalGlobalLoss', alpha=1.0, beta=1.0, gamma=1.0, lam=1e-3)),
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
    built = build(copy.deepcopy(model)).train()
    head = getattr(built.student, 'bbox_head', None)
    if type(head).__name__ == 'RTMDetSepBNHead':  # its assigner takes float32 alone
        for one in head.rtm_reg:  # it divides by the overlaps, which are 1 at least: boxes that fit
            nn.init.ones_(one.bias)
    else:
        built.double()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for parameter in built.distill.parameters():
        if not parameter.any():  # layers before one that starts with zeros have no gradient
            nn.init.normal_(parameter)
    return built


def whole(value: Tensor) -> Tensor:
    """A tensor of which each process may hold a part."""
    return value.full_tensor() if hasattr(value, 'full_tensor') else value


def steps(model: nn.Module, run: Callable[..., dict], batches: list[Any]) -> dict[str, Any]:
    """The loss of the last batch, the gradients of all of them together, and the weights."""
    for batch in batches:
        data = model.data_preprocessor(batch, True)
        inputs = data['inputs'].to(next(model.parameters()).dtype)
        losses = run(inputs, data['data_samples'], mode='loss')
        value, _ = model.parse_losses(losses)
        value.backward()
    grads = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    weights = {name: whole(x) for name, x in model.state_dict().items()}
    return dict(value=value.detach(), grads=grads, weights=weights)


#: Each process holds all parameters, or a part of each (FSDP2).
WRAPPERS = dict(
    ddp=nn.parallel.DistributedDataParallel,
    fsdp=getattr(torch.distributed.fsdp, 'fully_shard', None),
)

NORMAL = dict(rtol=None, atol=None)
DETECTORS = {'ATSS', 'FCOS', 'GFL', 'RTMDet', 'contexts', 'detector'}
CASES = [pytest.param(n, 'ddp', marks=needs_ops if n in DETECTORS else ()) for n in KINDS]


@pytest.mark.parametrize(
    ('kind', 'wrapper'),
    [
        *CASES,
        pytest.param(
            'segmentor',
            'fsdp',
            marks=pytest.mark.skipif(
                digit_version(torch.__version__) < digit_version(OLDEST), reason='torch is too old'
            ),
        ),
    ],
)
def test_as_one_with_twice_the_batch(kind: str, wrapper: str, data: Path, tmp_path: Path) -> None:
    model = KINDS[kind]()
    cfg = config(model, data, tmp_path, 1)
    init_default_scope(cfg.default_scope)
    images = DATASETS.build(cfg.train_dataloader.dataset)

    def batches(places: slice) -> list[Any]:
        return [
            pseudo_collate([images[number] for number in numbers[places]])
            for numbers in ([0, 1, 2, 3], [4, 5, 0, 1])
        ]

    def work(rank: int) -> dict[str, Any]:
        ours = distiller(model)
        return steps(ours, WRAPPERS[wrapper](ours), batches(slice(2 * rank, 2 * rank + 2)))

    one = distiller(model)
    expected = steps(one, one, batches(slice(None)))
    own = {name for name, _ in one.named_parameters() if name.startswith('distill.')}
    learning = {name for name, grad in expected['grads'].items() if grad.any()}
    assert learning and own <= learning  # connectors, and layers of losses
    results = ddp.forked(work, tmp_path)
    # FCOS divides by a sum of targets, which are float32 as the boxes are.
    close = dict(rtol=1e-4, atol=1e-5) if kind in ('FCOS', 'RTMDet') else NORMAL
    value = sum(found['value'] for found in results) / 2
    torch.testing.assert_close(value, expected['value'], **close)
    for found in results:
        assert found['weights'].keys() == expected['weights'].keys()
        assert learning <= found['grads'].keys()
        for name, grad in found['grads'].items():
            alone = expected['grads'].get(name, torch.zeros_like(grad))
            torch.testing.assert_close(
                grad, alone, msg=lambda text, n=name: f'{n}: {text}', **close
            )


def half(value: Any, places: slice, count: int) -> Any:
    """Some samples of what a loss gets: maps, labels, boxes; what has no samples stays."""
    if isinstance(value, list):
        return [half(one, places, count) for one in value]
    sampled = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
    return value[places] if sampled else value


def test_the_page_names_each_loss_that_is_of_a_process() -> None:
    """A process has a part of the batch; DDP takes the mean over them."""
    found = set()
    for case in cases(quick=True):
        # Heads are compared above, and the terms of queries have a matched pair for each image.
        if case.where in ('queries', 'masks') or 'assigned' in (case.others or ''):
            continue
        case = replace(case, shapes=[(4, *shape[1:]) for shape in case.shapes])
        loss, given = case.ours(), case.inputs()
        inputs = [given.student, given.teacher, *given.others]
        with torch.no_grad():
            one, *two = (
                loss(*(half(x, places, 4) for x in inputs)).item()
                for places in (slice(None), slice(2), slice(2, 4))
            )
        if one != pytest.approx(sum(two) / 2, rel=1e-4):
            found.add(case.loss)
    page = (Path(__file__).parents[1] / 'docs/distiller.md').read_text()
    table = page.partition('### What is of each process')[2].partition('ATSS, GFL')[0]
    not_measured = {'ProtocolLoss', 'BoxDistributionLoss', 'CrossHeadLoss'}
    not_measured |= {'SharedQueriesLoss', 'SharedMasksLoss'}
    assert set(re.findall(r'`(\w+Loss)`', table)) == found | not_measured


def test_a_memory_takes_the_rows_of_both(tmp_path: Path) -> None:
    rows = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[0, 1, 1, 2, 0, 3, 2, 1], [2, 2, 2, 0, 0, 1, 3, 3], [1] * 8])

    def pushed(places: slice) -> ClassMemory:
        memory = ClassMemory(3, 5, 4)
        for some, of in zip(rows, classes, strict=True):
            memory.push(some[places], of[places])
        return memory

    one = pushed(slice(None)).state_dict()
    for found in ddp.forked(
        lambda rank: pushed(slice(3) if rank == 0 else slice(3, None)).state_dict(), tmp_path
    ):
        torch.testing.assert_close(dict(found), dict(one), rtol=0, atol=0)
