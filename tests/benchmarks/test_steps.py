"""Training steps of the benchmark, with real models at a small size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import memory, mmrazor, steps
from tests.runs import needs_ops
from tests.stock_models import cwd, pspnet, retinanet

CPU = torch.device('cpu')


def narrow(name: str, student: dict, teacher: dict, tap: str, folder: Path) -> steps.Pair:
    """One of the pairs with narrow models in place of ResNets of up to 101 layers."""
    model = dict(
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=teacher, checkpoint=None),
        distill=dict(cwd=dict(tap=tap, loss=cwd(tau=4, loss_weight=3))),
    )
    config = folder / 'narrow.py'
    config.write_text(f'default_scope = {student["_scope_"]!r}\nmodel = {model!r}\n')
    return replace(steps.PAIRS[name], config=str(config))


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> steps.Pair:
    models = pspnet(8, 19), pspnet(16, 19)
    for model in models:
        model['decode_head']['dropout_ratio'] = 0.1
    return narrow('pspnet', *models, 'decode_head.conv_seg', tmp_path_factory.mktemp('pair'))


@pytest.fixture(scope='module')
def bench(pair: steps.Pair) -> steps.Bench:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bench = steps.set_up(pair, CPU, quick=True)
    for module in bench.models[steps.STUDENT].modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    yield bench
    torch.set_num_threads(threads)


def losses_of(bench: steps.Bench, variant: str) -> dict:
    model = bench.models[variant]
    data = model.data_preprocessor(bench.data[variant], True)
    return model(**data, mode='loss')


def test_every_way_to_teach_is_there(bench):
    assert {*bench.models, *bench.notes} == set(steps.VARIANTS)
    assert set(bench.notes) <= {steps.RAZOR}


def test_cached_maps_are_those_of_the_teacher(bench):
    online, cached = (losses_of(bench, name) for name in (steps.ONLINE, steps.CACHED))
    assert online.keys() == cached.keys() > losses_of(bench, steps.STUDENT).keys()
    key = 'distill.cwd.loss'
    assert cached[key].item() == pytest.approx(online[key].item(), rel=1e-3) and cached[key] > 0


def test_the_rest_of_the_loss_is_the_students(bench):
    alone = losses_of(bench, steps.STUDENT)
    for variant in bench.models:
        losses = losses_of(bench, variant)
        assert losses['decode.loss_ce'].item() == pytest.approx(alone['decode.loss_ce'].item())


def test_a_step_trains_the_student_and_nothing_else(bench):
    for variant in bench.models:
        weight = bench.models[steps.STUDENT].decode_head.conv_seg.weight
        before = weight.detach().clone()
        bench.step(variant)
        assert not torch.equal(weight, before), variant
    for teacher in bench.teachers.values():
        assert all(p.grad is None for p in teacher.parameters())


def test_mmrazors_teacher_computes_its_loss_without_a_graph(bench):
    if steps.RAZOR in bench.notes:
        pytest.skip(bench.notes[steps.RAZOR])
    model, seen = bench.models[steps.RAZOR], []
    handle = model.teacher.decode_head.loss_decode.register_forward_hook(
        lambda _, __, loss: seen.append(loss.requires_grad)
    )
    losses = losses_of(bench, steps.RAZOR)
    handle.remove()
    assert seen == [False]
    assert model.teacher.decode_head.dropout.training
    assert not model.teacher.backbone.layer1[0].bn1.training
    assert losses['distill_loss'] > 0


@needs_ops
def test_a_detector_takes_steps_too(tmp_path):
    pair = narrow('retinanet', retinanet(8, 80), retinanet(16, 80), 'neck', tmp_path)
    bench = steps.set_up(pair, CPU, quick=True)
    assert len(bench.maps) == 5
    bench.step(steps.CACHED)


def test_the_memory_of_a_step_is_taken_apart():
    found = memory.of_step(steps.PAIRS['pspnet'], CPU, quick=True)
    weights = found.parts['weights of the teacher']
    assert 250e6 < weights < 300e6
    assert found.parts['maps at its taps'] == 2 * 19 * 8 * 8 * 4
    assert found.allowed == sum(found.parts.values())
    assert found.peak[steps.CACHED] < 1.02 * found.peak[steps.STUDENT]
    assert found.peak[steps.ONLINE] >= found.peak[steps.STUDENT] + weights


def test_without_mmrazor_the_others_are_measured(pair, monkeypatch):
    def missing(*_, **__):
        raise mmrazor.NotInstalled('MMRazor is not installed: pip install')

    monkeypatch.setattr(mmrazor, 'loss', missing)
    found = steps.measure(pair, CPU, 0, quick=True)
    assert set(found.seconds) == {*steps.VARIANTS} - {steps.RAZOR}
    assert found.notes == {steps.RAZOR: 'MMRazor is not installed: pip install'}
