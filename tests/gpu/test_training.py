"""Training on a GPU: mixed precision, SyncBN, waiting for the device, memory, overlap."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory, steps
from benchmarks.measure import take_turns
from tests.fuzz import models
from tests.runs import Record, config, needs_ops, train
from tests.stock_models import build
from tests.test_small_batches import KINDS

pytestmark = pytest.mark.usefixtures('own_globals')

PAIR = steps.PAIRS['pspnet']  # 8 images of 512×1024


def trained(kind: str, data: Path, folder: Path, **wrapper: Any) -> list[dict[str, float]]:
    """The losses of four iterations."""
    record = Record()
    cfg = config(KINDS[kind](), data, folder, 4)
    cfg.optim_wrapper.update(wrapper)
    train(cfg, record)
    return record.losses


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize(
    'kind', [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in KINDS]
)
def test_mixed_precision_with_a_scaler(kind: str, dtype: str, data: Path, tmp_path: Path) -> None:
    plain = trained(kind, data, tmp_path / 'plain')
    mixed = trained(
        kind, data, tmp_path / dtype, type='AmpOptimWrapper', loss_scale='dynamic', dtype=dtype
    )
    for ours, theirs in zip(mixed, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=0.05, abs=0.05)


def with_gradients_through_sync_bn(rank: int, file: str) -> None:
    """One of two processes on one GPU; notes what the Distiller says."""
    os.environ.update(RANK=str(rank), LOCAL_RANK='0', WORLD_SIZE='2')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{file}', rank=rank, world_size=2
    )
    student = models.segmentor(4)
    student['decode_head']['norm_cfg'] = dict(type='SyncBN')
    student['decode_head']['num_convs'] = 1
    term = dict(tap='backbone.conv2', loss=models.own('GradientAttentionLoss'))
    model = build(models.distiller(student, models.online(models.segmentor(4)), dict(grad=term)))
    inputs, samples = _batch(model.cuda().train())
    try:
        model(inputs, samples, mode='loss')
    except ValueError as error:
        Path(f'{file}.{rank}').write_text(str(error))


def _batch(model: nn.Module) -> tuple[torch.Tensor, list]:
    data = model.data_preprocessor(steps.make_batch('mmseg', 2, 64, 64), True)
    for sample in data['data_samples']:
        sample.gt_sem_seg.data %= 3
    return data['inputs'], data['data_samples']


def test_sync_bn_has_no_second_derivative(tmp_path: Path) -> None:
    file = tmp_path / 'meeting'
    torch.multiprocessing.spawn(with_gradients_through_sync_bn, (str(file),), nprocs=2)
    for rank in (0, 1):
        assert 'SyncBatchNorm lies between' in Path(f'{file}.{rank}').read_text()


def waits(call: Callable[[], Any]) -> int:
    """How often a call waits for the device."""
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            call()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return sum('synchronizing CUDA operation' in str(one.message) for one in caught)


def test_the_finiteness_check_waits_once(data: Path, tmp_path: Path, gpu: torch.device) -> None:
    settings = models.of_a_segmentor()
    cfg = config(settings, data, tmp_path, 1)
    init_default_scope(cfg.default_scope)
    images = DATASETS.build(cfg.train_dataloader.dataset)
    model = build(copy.deepcopy(settings)).to(gpu).train()
    batch = model.data_preprocessor(pseudo_collate([images[0], images[1]]), True)
    calls = [
        lambda one=one: one(batch['inputs'], batch['data_samples'], mode='loss')
        for one in (model, model.student)
    ]
    for call in calls:  # what is chosen on a first call
        call()
    distilled, alone = map(waits, calls)
    assert distilled - alone <= 1


def test_a_step_at_full_size(gpu: torch.device) -> None:
    """Faster than the form of others; memory grows by the teacher alone; the GPU is never idle."""
    bench = steps.set_up(PAIR, gpu)
    calls = {
        name: lambda name=name: bench.step(name)
        for name in (steps.STUDENT, steps.RAZOR, steps.ONLINE)
        if name in bench.models
    }
    for call in calls.values():
        call()
    taken = {name: min(found) for name, found in take_turns(calls, gpu, 20).items()}
    print({name: f'{1e3 * seconds:.1f} ms' for name, seconds in taken.items()})
    assert taken[steps.ONLINE] < taken.get(steps.RAZOR, float('inf'))
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        calls[steps.ONLINE]()
        torch.cuda.synchronize(gpu)
    busy = sum(one.self_device_time_total for one in profiler.key_averages()) / 1e6
    print(f'kernels run for {busy / taken[steps.ONLINE]:.0%} of a step')
    assert busy > 0.85 * taken[steps.ONLINE]
    assert all(torch.isfinite(p).all() for p in bench.models[steps.STUDENT].parameters())


def test_the_peak_of_a_step(gpu: torch.device) -> None:
    found = memory.of_step(PAIR, gpu)
    more = found.peak[steps.ONLINE] - found.peak[steps.STUDENT]
    print(f'{more / 2**20:.0f} MiB more, of {found.allowed / 2**20:.0f} MiB allowed: {found.parts}')
    assert more <= found.allowed
